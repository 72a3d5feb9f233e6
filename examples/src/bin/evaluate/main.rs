//! Evaluates a model as Llama 2's makers did theirs: multiple choice, perplexity, toxic answers, truthful answers.
//!
//! Every number is made of [`llama_core::Llama::score`] or of answers that a guard or a judge reads; each module says by which rule, and from which paper.
//! All files are read before the model is loaded, and all that is asked is known to fit the context before any of it is computed.

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
use llama_core::Llama;
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
    let asked = args.truthful.as_deref().map(truthful::read).transpose()?;
    let guards = toxicity::guards(args)?;
    let judges = truthful::judges(args)?;

    let llama = model.load()?;
    let choices = choices.map(|file| file.lay(&llama, &format)).transpose()?;
    let text = text.map(|text| text.lay(&llama, args.stride)).transpose()?;
    let prompts = prompts.map(|file| file.lay(&llama, &asking)).transpose()?;
    let asked = asked.zip(judges).map(|(file, judges)| file.lay(&llama, judges, &asking)).transpose()?;
    let report = Report {
        multiple_choice: choices.map(|laid| multiple_choice::evaluate(&llama, &laid)).transpose()?,
        perplexity: text.map(perplexity::evaluate).transpose()?,
        toxicity: prompts.map(|laid| toxicity::evaluate(&llama, guards, &asking, laid)).transpose()?,
        truthfulness: asked.map(|laid| truthful::evaluate(&llama, &asking, &laid)).transpose()?,
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

/// Refuses a prompt that does not leave `reserved` tokens of a model's context free; the error says its place.
fn check_len(place: impl Fn() -> String, tokens: usize, reserved: usize, llama: &Llama) -> Result<()> {
    let limit = llama.max_seq_len();
    if tokens + reserved > limit {
        let place = place();
        let error =
            format!("{place}: its prompt of {tokens} tokens leaves no room in the context of {limit}");
        return Err(error.into());
    }
    Ok(())
}

/// A text file, without a byte order mark; the error names it.
fn read(path: &Path) -> Result<String> {
    let mut text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len_utf8());
    }
    Ok(text)
}
