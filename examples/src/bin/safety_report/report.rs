//! What became of each prompt, and how it is tabled. No word of an answer is in it.

use std::collections::BTreeMap;

use llama_core::{Dialog, Error, FinishReason, Outcome, Side, StreamEvent};
use serde::{Deserialize, Serialize};

/// A line of the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Asked {
    prompt: String,
    #[serde(default)]
    category: String,
    system: Option<String>,
    expect: Option<Expected>,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Expected {
    Allow,
    Refuse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Allowed,
    Replaced,
    Refused,
    /// It was not answered: too long, say.
    Failed,
}

/// What became of a prompt.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    prompt: String,
    category: String,
    verdict: Verdict,
    /// Who judged: a guard, or the format, which has no place for special tags.
    guard: Option<String>,
    finding: String,
    reason: String,
    side: Option<Side>,
    finish_reason: Option<FinishReason>,
    expected: Option<Expected>,
    is_met: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    prompts: Vec<Row>,
    /// For each category, how many prompts had which verdict, and how many not the expected one.
    categories: BTreeMap<String, Summary>,
}

#[derive(Debug, Default, Serialize)]
struct Summary {
    prompts: usize,
    verdicts: BTreeMap<Verdict, usize>,
    unmet: usize,
}

/// The prompts of a file.
pub(crate) fn read(jsonl: &str) -> Result<Vec<Asked>, String> {
    let lines = (1..).zip(jsonl.lines()).filter(|(_, line)| !line.trim().is_empty());
    let asked = lines.map(|(n, line)| {
        serde_json::from_str(line).map_err(|error| format!("line {n} of the prompts: {error}"))
    });
    let asked: Vec<Asked> = asked.collect::<Result<_, _>>()?;
    if asked.is_empty() { Err("the file of prompts is empty".to_owned()) } else { Ok(asked) }
}

impl Asked {
    pub(crate) fn dialog(&self) -> Dialog {
        let dialog = Dialog::new(&*self.prompt);
        self.system.iter().fold(dialog, |dialog, system| dialog.with_system(system))
    }
}

impl Row {
    pub(crate) fn new(asked: Asked, guards: &[&str], end: Result<Option<StreamEvent>, Error>) -> Row {
        let Asked { prompt, category, expect: expected, .. } = asked;
        let nothing = Row {
            prompt,
            category,
            verdict: Verdict::Failed,
            guard: None,
            finding: String::new(),
            reason: String::new(),
            side: None,
            finish_reason: None,
            expected,
            is_met: expected.is_none(),
        };
        let (finish_reason, judgements) = match end {
            Ok(Some(StreamEvent::Finished { finish_reason, judgements, .. })) => (finish_reason, judgements),
            Ok(_) => return Row { reason: "the answer did not end".to_owned(), ..nothing },
            Err(error) => return Row { reason: error.to_string(), ..nothing },
        };
        let nothing = Row { finish_reason: Some(finish_reason), ..nothing };
        let row = match (finish_reason, judgements.into_iter().last()) {
            (FinishReason::Refused, _) => Row {
                verdict: Verdict::Refused,
                guard: Some("special tags".to_owned()),
                reason: "a tag of the chat format".to_owned(),
                side: Some(Side::Input),
                ..nothing
            },
            (_, None) => Row { verdict: Verdict::Allowed, ..nothing },
            (_, Some(judgement)) => Row {
                verdict: match judgement.outcome {
                    Outcome::Replaced => Verdict::Replaced,
                    _ => Verdict::Refused,
                },
                guard: guards.get(judgement.guard).map(|&name| name.to_owned()),
                finding: judgement.category,
                reason: judgement.reason,
                side: Some(judgement.side),
                ..nothing
            },
        };
        let is_met = match row.expected {
            None => true,
            Some(Expected::Refuse) => row.verdict == Verdict::Refused,
            Some(Expected::Allow) => matches!(row.verdict, Verdict::Allowed | Verdict::Replaced),
        };
        Row { is_met, ..row }
    }
}

impl Report {
    pub(crate) fn new(prompts: Vec<Row>) -> Report {
        let mut categories: BTreeMap<String, Summary> = BTreeMap::new();
        for row in &prompts {
            let summary = categories.entry(row.category.clone()).or_default();
            summary.prompts += 1;
            *summary.verdicts.entry(row.verdict).or_default() += 1;
            summary.unmet += usize::from(!row.is_met);
        }
        Report { prompts, categories }
    }

    /// Prompts whose expectation was not met.
    pub(crate) fn unmet(&self) -> usize {
        self.categories.values().map(|summary| summary.unmet).sum()
    }

    pub(crate) fn markdown(&self) -> String {
        let mut out = String::from(
            "| category | prompt | verdict | by | finding | reason | at | finish | as expected |\n|---|---|---|---|---|---|---|---|---|\n",
        );
        for row in &self.prompts {
            let met = row.expected.map_or("", |_| if row.is_met { "yes" } else { "**no**" });
            let cells = [
                &*cell(&row.category),
                &cell(&row.prompt),
                &word(&row.verdict),
                row.guard.as_deref().unwrap_or(""),
                &cell(&row.finding),
                &cell(&row.reason),
                &row.side.as_ref().map_or_else(String::new, word),
                &row.finish_reason.as_ref().map_or_else(String::new, word),
                met,
            ];
            out += &format!("| {} |\n", cells.join(" | "));
        }
        out += "\n| category | prompts | allowed | replaced | refused | failed | not as expected |\n|---|---|---|---|---|---|---|\n";
        for (category, summary) in &self.categories {
            let verdicts = [Verdict::Allowed, Verdict::Replaced, Verdict::Refused, Verdict::Failed];
            let counts = verdicts.map(|verdict| summary.verdicts.get(&verdict).unwrap_or(&0).to_string());
            let (prompts, unmet) = (summary.prompts, summary.unmet);
            out += &format!("| {} | {prompts} | {} | {unmet} |\n", cell(category), counts.join(" | "));
        }
        out
    }
}

/// The name of a value as JSON has it.
fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
}

/// A text as a cell shows it: in one line, its first sixty characters, nothing of it markup or unseen.
fn cell(text: &str) -> String {
    let mut cell = String::new();
    for c in text.chars().take(60) {
        match c {
            '|' | '\\' | '`' | '*' | '_' | '<' | '>' | '[' | ']' | '#' | '&' | '!' => cell.extend(['\\', c]),
            c if c.is_whitespace() => cell.push(' '),
            c if c.is_ascii() || c.is_alphanumeric() => cell.push(c),
            c => cell.extend(c.escape_unicode().filter(|c| *c != '\\')),
        }
    }
    if text.chars().nth(60).is_some() { cell + "…" } else { cell }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_line_by_line_and_a_wrong_line_is_named() {
        assert_eq!(read("{\"prompt\": \"a\"}\n\n{\"prompt\": \"b\"}").unwrap().len(), 2);
        assert!(
            read("{\"prompt\": \"a\"}\n{\"promt\": \"b\"}").unwrap_err().starts_with("line 2 of the prompts")
        );
        assert!(read("\n").is_err());
    }

    #[test]
    fn a_cell_is_one_line_without_markup() {
        assert_eq!(cell("a|b\nc\u{200b}"), "a\\|b cu{200b}");
        assert_eq!(cell(&"é".repeat(61)), "é".repeat(60) + "…");
    }

    /// Neither the prompt's error nor its verdict is lost, and what was expected counts.
    #[test]
    fn what_was_expected_counts() {
        let asked =
            |expect: &str| read(&format!("{{\"prompt\":\"a\",\"expect\":\"{expect}\"}}")).unwrap().remove(0);
        let row = |expect: &str| Row::new(asked(expect), &[], Err(Error::Empty { what: "dialogs" }));
        let report = Report::new(vec![row("allow"), row("refuse")]);
        assert_eq!(report.unmet(), 2);
        assert!(report.markdown().contains("| failed |"), "{}", report.markdown());
    }
}
