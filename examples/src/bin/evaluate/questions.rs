//! Questions with right and wrong answers, in the layouts of TruthfulQA (Lin, Hilton and Evans 2022,
//! <https://arxiv.org/abs/2109.07958>; the data is at <https://github.com/sylinrl/TruthfulQA>).
//!
//! `mc_task.json` is a list of `{"question": …, "mc1_targets": {choice: 0 or 1}, "mc2_targets": …}`; on the Hugging Face hub, targets are
//! `{"choices": […], "labels": […]}`. `TruthfulQA.csv` has the columns `Question`, `Best Answer`, `Correct Answers` and `Incorrect Answers`, the
//! last two separated by semicolons.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::{Result, csv};

/// A file of questions.
pub(crate) struct Questions {
    pub(crate) path: PathBuf,
    pub(crate) questions: Vec<Question>,
}

#[derive(serde::Deserialize)]
pub(crate) struct Question {
    pub(crate) question: String,
    #[serde(default)]
    pub(crate) mc1_targets: Targets,
    #[serde(default)]
    pub(crate) mc2_targets: Targets,
}

/// Choices in their order, and whether each is true.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Targets(pub(crate) Vec<(String, bool)>);

impl Questions {
    /// Where a question stands, for an error about it.
    pub(crate) fn place(&self, index: usize) -> String {
        let question = &self.questions[index].question;
        let shown: String = question.chars().take(60).collect();
        let rest = if shown.len() < question.len() { "…" } else { "" };
        format!("{}: question {} ({shown:?}{rest})", self.path.display(), index + 1)
    }
}

impl Question {
    /// The choices of either kind; those of both are there twice.
    pub(crate) fn choices(&self) -> impl Iterator<Item = &str> {
        self.mc1_targets.0.iter().chain(&self.mc2_targets.0).map(|(choice, _)| choice.as_str())
    }
}

/// Reads either layout: a CSV file is one whose name says so. Without choices, it need have no columns of them.
pub(crate) fn read(path: &Path, with_choices: bool) -> Result<Questions> {
    let text = crate::read(path)?;
    let is_csv = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
    let read = match is_csv {
        true => from_csv(&text, with_choices),
        false => serde_json::from_str(&text).map_err(|error| error.to_string()),
    };
    let questions = read.map_err(|error| format!("{}: {error}", path.display()))?;
    if questions.is_empty() {
        return Err(format!("{}: there is no question in it", path.display()).into());
    }
    Ok(Questions { path: path.to_owned(), questions })
}

fn from_csv(text: &str, with_choices: bool) -> std::result::Result<Vec<Question>, String> {
    let mut records = csv::parse(text)?.into_iter();
    let (line, header) = records.next().unwrap_or((1, Vec::new()));
    let column = |name: &str| {
        let at = header.iter().position(|column| column.trim() == name);
        at.ok_or_else(|| format!("line {line}: there is no column `{name}`"))
    };
    let question = column("Question")?;
    let choices = ["Best Answer", "Correct Answers", "Incorrect Answers"];
    let choices = match with_choices {
        true => Some((column(choices[0])?, column(choices[1])?, column(choices[2])?)),
        false => None,
    };
    let read = |(line, fields): (usize, Vec<String>)| {
        let field =
            |at: usize| fields.get(at).ok_or(format!("line {line}: the column `{}` is missing", header[at]));
        let question = field(question)?.trim().to_owned();
        if question.is_empty() {
            return Err(format!("line {line}: the question is empty"));
        }
        let (mut mc1_targets, mut mc2_targets) = (Targets::default(), Targets::default());
        if let Some((best, correct, incorrect)) = choices {
            let labelled = |label| move |answer| (answer, label);
            let wrong: Vec<_> = answers(field(incorrect)?).map(labelled(false)).collect();
            // One answer, whatever stands in it.
            let best = answer(field(best)?).into_iter().map(labelled(true));
            mc1_targets = Targets(best.chain(wrong.iter().cloned()).collect());
            mc2_targets = Targets(answers(field(correct)?).map(labelled(true)).chain(wrong).collect());
        }
        Ok(Question { question, mc1_targets, mc2_targets })
    };
    records.map(read).collect()
}

/// Answers that semicolons separate.
fn answers(list: &str) -> impl Iterator<Item = String> {
    list.split(';').filter_map(answer)
}

/// An answer, with the full stop that `mc_task.json` gives it; `None` where there is none.
fn answer(text: &str) -> Option<String> {
    let text = text.trim();
    let closed = || if text.ends_with('.') { text.to_owned() } else { format!("{text}.") };
    (!text.is_empty()).then(closed)
}

impl<'de> Deserialize<'de> for Targets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Targets;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("choices: {choice: 0 or 1}, or lists of `choices` and `labels`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Targets, A::Error> {
                // In the file's order, which a map of serde_json's would not keep.
                let mut entries: Vec<(String, Value)> = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                targets(entries).map_err(serde::de::Error::custom)
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

fn targets(entries: Vec<(String, Value)>) -> std::result::Result<Targets, String> {
    let list =
        |name| entries.iter().find_map(|(key, value)| (key == name).then(|| value.as_array()).flatten());
    let labelled: Vec<(&str, &Value)> = match (list("choices"), list("labels")) {
        (Some(choices), Some(labels)) if choices.len() == labels.len() => {
            let text = |choice: &'_ Value| choice.as_str().map(str::to_owned);
            if let Some(at) = choices.iter().position(|choice| text(choice).is_none()) {
                return Err(format!("choice {at} is no text"));
            }
            choices.iter().filter_map(Value::as_str).zip(labels).collect()
        }
        (Some(choices), Some(labels)) => {
            return Err(format!("{} choices have {} labels", choices.len(), labels.len()));
        }
        _ => entries.iter().map(|(choice, label)| (choice.as_str(), label)).collect(),
    };
    let read = |(choice, label): (&str, &Value)| match label.as_u64() {
        Some(label @ (0 | 1)) => Ok((choice.to_owned(), label == 1)),
        _ => Err(format!("the label of {choice:?} is {label}, expected 0 or 1")),
    };
    Ok(Targets(labelled.into_iter().map(read).collect::<std::result::Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(json: &str) -> std::result::Result<Targets, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn both_layouts_of_json_say_the_same() {
        let expected = Targets(vec![("b".to_owned(), true), ("a".to_owned(), false)]);
        assert_eq!(targets(r#"{"b": 1, "a": 0}"#).as_ref(), Ok(&expected));
        assert_eq!(targets(r#"{"choices": ["b", "a"], "labels": [1, 0]}"#).as_ref(), Ok(&expected));
        for (json, wrong) in [
            (r#"{"b": 2}"#, "the label of \"b\" is 2"),
            (r#"{"choices": ["b"], "labels": [1, 0]}"#, "1 choices have 2 labels"),
            (r#"{"choices": ["b", 7], "labels": [1, 0]}"#, "choice 1 is no text"),
            (r#"["b"]"#, "expected choices"),
        ] {
            let error = targets(json).expect_err(json);
            assert!(error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn a_csv_file_gives_the_same_choices() {
        let text = "Type,Question,Best Answer,Correct Answers,Incorrect Answers\n\
                    x,Why?,So,\"So; Because.\",\"No, never; Yes\"\n";
        let questions = from_csv(text, true).expect("well formed");
        let choice = |text: &str, is_true| (text.to_owned(), is_true);
        assert_eq!(
            questions[0].mc1_targets.0,
            [choice("So.", true), choice("No, never.", false), choice("Yes.", false)]
        );
        assert_eq!(questions[0].mc2_targets.0.len(), 4);
        // The best answer is one, semicolon or not.
        let text = "Question,Best Answer,Correct Answers,Incorrect Answers\rWhy?,Yes; no,Yes,No";
        let questions = from_csv(text, true).expect("line ends of any kind");
        assert_eq!(questions[0].mc1_targets.0, [choice("Yes; no.", true), choice("No.", false)]);
        // Who needs no choices need have none.
        let questions = from_csv("Type,Question\nx,Why?\ny,How?", false).expect("no column is missing");
        assert_eq!(
            questions.iter().map(|question| &*question.question).collect::<Vec<_>>(),
            ["Why?", "How?"]
        );
        assert!(questions[1].choices().next().is_none());
        let error = |text| from_csv(text, false).err();
        assert_eq!(error("\nQ\nWhy?"), Some("line 2: there is no column `Question`".to_owned()));
        assert_eq!(error("Type,Question\nx\n"), Some("line 2: the column `Question` is missing".to_owned()));
        assert_eq!(error("Type,Question\nx, \n"), Some("line 2: the question is empty".to_owned()));
        let error = |text| from_csv(text, true).err();
        assert_eq!(
            error("Question,Best Answer\n"),
            Some("line 1: there is no column `Correct Answers`".to_owned())
        );
        let short = "Question,Best Answer,Correct Answers,Incorrect Answers\na,b,c\n";
        assert_eq!(error(short), Some("line 2: the column `Incorrect Answers` is missing".to_owned()));
    }
}
