//! Judges tiny-chat on its held-out prompts, by the rules that its model card states: a table, and a failure below the marks.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use examples::ModelArgs;
use llama_core::{ChatOptions, ChatPrediction, Dialog, FinishReason, Llama};
use serde::Deserialize;

/// Judges tiny-chat, or another model, on tiny-chat's held-out prompts.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Print the answers that are wrong
    #[arg(long)]
    show: bool,
}

#[derive(Deserialize)]
struct Case {
    skill: String,
    dialog: Dialog,
    judge: Rules,
}

/// What a right answer is; `models/tiny-chat/README.md` says it in words.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Rules {
    must_contain: Vec<String>,
    must_not_contain: Vec<String>,
    contains_any: Vec<Vec<String>>,
    lines: Option<usize>,
    only_emoji: bool,
    min_chars: usize,
    max_chars: usize,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            must_contain: Vec::new(),
            must_not_contain: Vec::new(),
            contains_any: Vec::new(),
            lines: None,
            only_emoji: false,
            min_chars: 0,
            max_chars: usize::MAX,
        }
    }
}

fn is_emoji(char: char) -> bool {
    matches!(char, ' ' | '\u{200D}' | '\u{FE0F}' | '\u{2190}'..='\u{2BFF}' | '\u{1F000}'..='\u{1FAFF}')
}

/// No run of four words comes more than twice.
fn no_garbage(answer: &str) -> bool {
    let words: Vec<_> = answer.split_whitespace().collect();
    let mut counts: BTreeMap<&[&str], usize> = BTreeMap::new();
    words.windows(4).for_each(|run| *counts.entry(run).or_default() += 1);
    counts.values().all(|&count| count <= 2)
}

impl Rules {
    fn hold(&self, prediction: &ChatPrediction) -> bool {
        let answer = prediction.generation.content.trim();
        let lower = answer.to_lowercase();
        let lines = answer.split('\n').filter(|line| !line.trim().is_empty()).count();
        prediction.finish_reason == FinishReason::Stop
            && no_garbage(answer)
            && self.must_contain.iter().all(|text| answer.contains(text))
            && !self.must_not_contain.iter().any(|text| answer.contains(text))
            && self.contains_any.iter().all(|any| any.iter().any(|text| lower.contains(&text.to_lowercase())))
            && self.lines.is_none_or(|expected| expected == lines)
            && (!self.only_emoji || answer.chars().all(is_emoji))
            && (self.min_chars..=self.max_chars).contains(&answer.chars().count())
    }
}

fn main() -> ExitCode {
    examples::run(|| {
        let args = Args::parse();
        let llama = args.model.load(512, 16)?;
        let cases: Vec<Case> = serde_json::from_str(include_str!("../../../models/tiny-chat/heldout.json"))?;
        let greedy = judge(&args, &llama, &cases, 0.0, 90)?;
        let sampled = judge(&args, &llama, &cases, 0.6, 80)?;
        if greedy && sampled { Ok(()) } else { Err("tiny-chat is below its marks".into()) }
    })
}

/// Prints a row per skill; whether each reaches the mark, in per cent. Of the reference's dialogs all must be right.
fn judge(
    args: &Args,
    llama: &Llama,
    cases: &[Case],
    temperature: f64,
    mark: usize,
) -> Result<bool, Box<dyn std::error::Error>> {
    let dialogs: Vec<_> = cases.iter().map(|case| case.dialog.clone()).collect();
    let options = ChatOptions { temperature, top_p: 0.9, max_gen_len: Some(200), ..Default::default() };
    let answers = llama.chat_completion(&dialogs, &options)?;
    let mut out = io::stdout().lock();
    let mut skills: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (case, answer) in cases.iter().zip(&answers) {
        let (right, total) = skills.entry(&case.skill).or_default();
        *total += 1;
        if case.judge.hold(answer) {
            *right += 1;
        } else if args.show {
            writeln!(
                out,
                "{}: {:?}\n  {:?}",
                case.skill,
                case.dialog.last_user(),
                answer.generation.content
            )?;
        }
    }
    let mut reached = true;
    writeln!(out, "temperature {temperature}: right answers, of which {mark} % are asked for")?;
    for (skill, (right, total)) in skills {
        let mark = if skill == "reference" && temperature == 0.0 { 100 } else { mark };
        let enough = right * 100 >= mark * total;
        reached &= enough;
        let share = right as f64 * 100.0 / total as f64;
        writeln!(
            out,
            "{skill:>12} {right:4} of {total:4} {share:6.1} %{}",
            if enough { "" } else { "  BELOW THE MARK" }
        )?;
    }
    Ok(reached)
}
