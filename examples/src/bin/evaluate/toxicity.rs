//! The share of toxic answers, by group, to prompts in ToxiGen's layout (Hartvigsen et al. 2022, <https://arxiv.org/abs/2203.09509>): one JSON object a
//! line, with `prompt` (or `text`) and `group` (or `target_group`, `category`).
//!
//! What is toxic, a guard says: a word list, a classifier, or both. It is asked about each whole answer and never about a prompt, many of which are
//! toxic on purpose. An answer that it cannot judge counts as neither, nor does a prompt with a special tag of the chat
//! format, which has no answer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use examples::progress;
use llama_core::{
    Classifier, Excerpt, Guard, GuardError, HoldBack, Llama, Message, Outcome, Side, Verdict, WordList,
};
use serde::{Deserialize, Serialize};

use crate::args::Args;
use crate::ask::{Asking, Prompts};
use crate::{Result, named};

#[derive(Debug, Serialize)]
pub(crate) struct Toxicity {
    #[serde(flatten)]
    pub(crate) all: Count,
    pub(crate) groups: BTreeMap<String, Count>,
}

#[derive(Debug, Default, Clone, Copy, Serialize)]
pub(crate) struct Count {
    pub(crate) prompts: usize,
    pub(crate) toxic: usize,
    /// Prompts that hold a special tag of the chat format: they were not answered.
    pub(crate) refused: usize,
    /// Answers that the guard could not judge.
    pub(crate) not_judged: usize,
}

impl Count {
    /// The share of toxic answers in those that were judged; `None` where none was.
    pub(crate) fn share(self) -> Option<f64> {
        let judged = self.prompts - self.refused - self.not_judged;
        (judged > 0).then(|| self.toxic as f64 / judged as f64)
    }
}

#[derive(Debug, Deserialize)]
struct Line {
    #[serde(alias = "text")]
    prompt: String,
    #[serde(alias = "target_group", alias = "category", default = "no_group")]
    group: String,
}

fn no_group() -> String {
    "no group".to_owned()
}

/// A file of prompts, each with its line.
pub(crate) struct File {
    path: PathBuf,
    lines: Vec<(usize, Line)>,
}

/// Prompts that leave room for an answer, and the group of each.
pub(crate) struct Laid {
    prompts: Prompts,
    groups: Vec<String>,
}

pub(crate) fn read(path: &Path) -> Result<File> {
    let mut lines = Vec::new();
    for (number, line) in (1..).zip(crate::read(path)?.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        // serde_json's own place is within the line.
        let read =
            serde_json::from_str(line).map_err(|error| format!("{}, line {number}: {error}", path.display()));
        lines.push((number, read?));
    }
    if lines.is_empty() {
        return Err(format!("{}: there is no prompt in it", path.display()).into());
    }
    Ok(File { path: path.to_owned(), lines })
}

impl File {
    pub(crate) fn lay(self, llama: &Llama, asking: &Asking<'_>) -> Result<Laid> {
        let place = |i: usize| format!("{}, line {}", self.path.display(), self.lines[i].0);
        let prompts = self.lines.iter().map(|(_, line)| line.prompt.clone()).collect();
        let prompts = asking.check(llama, prompts, place)?;
        Ok(Laid { prompts, groups: self.lines.into_iter().map(|(_, line)| line.group).collect() })
    }
}

/// The guards that say what is toxic.
pub(crate) fn guards(args: &Args) -> Result<Vec<OfAnswers>> {
    let mut guards: Vec<OfAnswers> = Vec::new();
    if let Some(path) = &args.words {
        let list = WordList::open(path).map_err(|error| named(path, error))?;
        guards.push(OfAnswers(Box::new(list)));
    }
    if let Some(path) = &args.classifier {
        guards.push(OfAnswers(Box::new(Classifier::new(args.load_other(path)?))));
    }
    Ok(guards)
}

/// A guard that lets every prompt pass, one that an answer goes on from included.
pub(crate) struct OfAnswers(Box<dyn Guard>);

impl Guard for OfAnswers {
    fn judge(&self, excerpt: &Excerpt<'_>) -> std::result::Result<Verdict, GuardError> {
        match excerpt.side {
            Side::Input => Ok(Verdict::Allow),
            Side::Output if excerpt.prompt_len == 0 => self.0.judge(excerpt),
            Side::Output => {
                let (prompt, text) = excerpt.text.split_at(excerpt.prompt_len);
                let before = [Message::user(prompt)];
                let mut answer = *excerpt;
                (answer.text, answer.prompt_len, answer.before) = (text, 0, &before);
                self.0.judge(&answer)
            }
        }
    }
}

pub(crate) fn evaluate(
    llama: &Llama,
    guards: Vec<OfAnswers>,
    asking: &Asking<'_>,
    Laid { prompts, groups }: Laid,
) -> Result<Toxicity> {
    let llama = guards.into_iter().fold(llama.clone(), Llama::with_guard).with_hold_back(HoldBack::Answer);
    let bar = progress::bar("Prompts", groups.len());
    let said = asking.go_on(&llama, &prompts, |n| bar.inc(n as u64))?;
    let mut toxicity = Toxicity { all: Count::default(), groups: BTreeMap::new() };
    for (group, said) in groups.into_iter().zip(said) {
        let outcome = said.judgement.map(|judgement| judgement.outcome);
        for count in [&mut toxicity.all, toxicity.groups.entry(group).or_default()] {
            count.prompts += 1;
            count.refused += usize::from(said.is_refused);
            count.toxic += usize::from(outcome.is_some_and(|outcome| outcome != Outcome::Failed));
            count.not_judged += usize::from(outcome == Some(Outcome::Failed));
        }
    }
    Ok(toxicity)
}
