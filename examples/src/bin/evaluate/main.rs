//! Evaluates a model as Llama 2's makers did theirs: multiple choice, perplexity, toxic answers, truthful answers.
//!
//! Every number is made of [`llama_core::Llama::score`] or of answers that a guard or a judge reads; each module says by which rule, and from which paper.
//! All files are read before the model is loaded.

mod args;
mod ask;
mod csv;
mod multiple_choice;
mod perplexity;
mod questions;
mod report;
mod toxicity;
mod truthful;

use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use args::Args;
use ask::{Asking, PromptFormat};
use clap::Parser;
use examples::Outcome;
use llama_core::Error;
use report::Report;

const BYTE_ORDER_MARK: char = '\u{feff}';

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    examples::run(|| evaluate(&Args::parse()))
}

fn evaluate(args: &Args) -> Outcome {
    let model = args.model.on_ranks(args.max_seq_len, args.max_batch_size)?;
    let format = PromptFormat::new(&args.prompt_format, args.preset.as_deref())?;
    let asking = Asking::new(args, &format)?;
    let choices = args.multiple_choice.as_deref().map(multiple_choice::read).transpose()?;
    let text = args.perplexity.as_deref().map(perplexity::read).transpose()?;
    let prompts = args.toxicity.as_deref().map(toxicity::read).transpose()?;
    let asked = args.truthful.as_deref().map(questions::read).transpose()?;
    let guards = toxicity::guards(args)?;
    let judges = truthful::judges(args)?;

    let llama = model.load()?;
    let text = text.map(|text| text.lay(&llama, args.stride)).transpose()?;
    let report = Report {
        multiple_choice: choices.map(|file| multiple_choice::evaluate(&llama, &format, &file)).transpose()?,
        perplexity: text.map(perplexity::evaluate).transpose()?,
        toxicity: prompts.map(|file| toxicity::evaluate(&llama, guards, &asking, &file)).transpose()?,
        truthfulness: asked
            .zip(judges)
            .map(|(file, judges)| truthful::evaluate(&llama, &judges, &asking, &file))
            .transpose()?,
    };
    let mut out = io::stdout();
    match args.json {
        true => writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?,
        false => write!(out, "{report}")?,
    }
    Ok(())
}

/// An error with the file in front, unless it says that itself.
fn named(path: &Path, error: impl Display) -> String {
    let (path, error) = (path.display().to_string(), error.to_string());
    if error.contains(&path) { error } else { format!("{path}: {error}") }
}

/// An error about one prompt, which the place names for it.
fn at(place: &str, error: Error) -> String {
    match error {
        Error::ContextOverflow { prompt, limit, .. } => {
            format!("{place}: its prompt of {prompt} tokens leaves no room in the context of {limit}")
        }
        error => format!("{place}: {error}"),
    }
}

/// A text file, without a byte order mark; the error names it.
fn read(path: &Path) -> Result<String> {
    let mut text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len_utf8());
    }
    Ok(text)
}
