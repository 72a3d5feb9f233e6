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
        format!("{}: question {} ({:?})", self.path.display(), index + 1, self.questions[index].question)
    }
}

/// Reads either layout: a CSV file is one whose name says so.
pub(crate) fn read(path: &Path) -> Result<Questions> {
    let text = crate::read(path)?;
    let is_csv = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
    let read =
        if is_csv { from_csv(&text) } else { serde_json::from_str(&text).map_err(|error| error.to_string()) };
    let questions = read.map_err(|error| format!("{}: {error}", path.display()))?;
    if questions.is_empty() {
        return Err(format!("{}: there is no question in it", path.display()).into());
    }
    Ok(Questions { path: path.to_owned(), questions })
}

fn from_csv(text: &str) -> std::result::Result<Vec<Question>, String> {
    let mut records = csv::parse(text)?.into_iter();
    let (_, header) = records.next().unwrap_or_default();
    let column = |name: &str| {
        let at = header.iter().position(|column| column.trim() == name);
        at.ok_or_else(|| format!("line 1: there is no column `{name}`"))
    };
    let (question, best) = (column("Question")?, column("Best Answer")?);
    let (correct, incorrect) = (column("Correct Answers")?, column("Incorrect Answers")?);
    let read = |(line, fields): (usize, Vec<String>)| {
        let field =
            |at: usize| fields.get(at).ok_or(format!("line {line}: the column `{}` is missing", header[at]));
        let wrong = || Ok::<_, String>(answers(field(incorrect)?).map(|answer| (answer, false)));
        let right = |at| Ok::<_, String>(answers(field(at)?).map(|answer| (answer, true)));
        Ok(Question {
            question: field(question)?.trim().to_owned(),
            mc1_targets: Targets(right(best)?.chain(wrong()?).collect()),
            mc2_targets: Targets(right(correct)?.chain(wrong()?).collect()),
        })
    };
    records.map(read).collect()
}

/// Answers that semicolons separate, each with the full stop that `mc_task.json` gives it.
fn answers(list: &str) -> impl Iterator<Item = String> {
    let list = list.split(';').map(str::trim).filter(|answer| !answer.is_empty());
    list.map(|answer| if answer.ends_with('.') { answer.to_owned() } else { format!("{answer}.") })
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
        let questions = from_csv(text).expect("well formed");
        let choice = |text: &str, is_true| (text.to_owned(), is_true);
        assert_eq!(
            questions[0].mc1_targets.0,
            [choice("So.", true), choice("No, never.", false), choice("Yes.", false)]
        );
        assert_eq!(questions[0].mc2_targets.0.len(), 4);
        let error = |text| from_csv(text).err();
        assert_eq!(
            error("Question,Best Answer\n"),
            Some("line 1: there is no column `Correct Answers`".to_owned())
        );
        let short = "Question,Best Answer,Correct Answers,Incorrect Answers\na,b,c\n";
        assert_eq!(error(short), Some("line 2: the column `Incorrect Answers` is missing".to_owned()));
    }
}
