//! Answers the reference's example dialogs, or a file of your own: `chat_completion --ckpt_dir DIR --tokenizer_path FILE`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use examples::{ModelArgs, Outcome, SamplingArgs, capitalize};
use llama_core::{ChatOptions, Dialog, Error, Llama, Role};

/// Answers dialogs in one batch, as the reference's example_chat_completion.py does.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Tokens that a dialog and its answer may have together
    #[arg(long = "max_seq_len", default_value_t = 512)]
    max_seq_len: usize,
    /// Dialogs that run at a time
    #[arg(long = "max_batch_size", default_value_t = 8)]
    max_batch_size: usize,
    /// Tokens of an answer at most [default: as many as fit]
    #[arg(long = "max_gen_len")]
    max_gen_len: Option<usize>,
    /// JSON file with dialogs, [[{"role": "user", "content": "…"}, …], …] [default: the reference's six]
    #[arg(long, value_name = "FILE")]
    dialogs: Option<PathBuf>,
}

fn main() -> ExitCode {
    examples::run(|| chat_completion(&Args::parse()))
}

fn chat_completion(args: &Args) -> Outcome {
    let model = args.model.on_ranks(args.max_seq_len, args.max_batch_size)?;
    let json = match &args.dialogs {
        Some(path) => {
            std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?
        }
        None => include_str!("../../data/dialogs.json").to_owned(),
    };
    let dialogs: Vec<Dialog> = serde_json::from_str(&json).map_err(|error| format!("dialogs: {error}"))?;
    let llama = model.load()?;
    let options = ChatOptions {
        temperature: args.sampling.temperature,
        top_p: args.sampling.top_p,
        max_gen_len: args.max_gen_len,
        ..Default::default()
    };
    let answers = answer_those_that_fit(&llama, &dialogs, &options)?;

    let mut out = io::stdout().lock();
    for (dialog, answer) in dialogs.iter().zip(&answers) {
        for message in dialog.messages() {
            writeln!(out, "{}: {}\n", capitalize(message.role.as_str()), message.content)?;
        }
        writeln!(out, "> {}: {answer}", capitalize(Role::Assistant.as_str()))?;
        writeln!(out, "\n==================================\n")?;
    }
    Ok(())
}

/// One answer per dialog. A dialog that is too long for the context gets that as its answer, as one with special tags
/// does, and does not keep the others from theirs; where none fits, it is an error.
fn answer_those_that_fit(
    llama: &Llama,
    dialogs: &[Dialog],
    options: &ChatOptions,
) -> Result<Vec<String>, Error> {
    let mut answers = vec![String::new(); dialogs.len()];
    let mut fitting: Vec<usize> = (0..dialogs.len()).collect();
    let predictions = loop {
        let asked: Vec<Dialog> = fitting.iter().map(|&row| dialogs[row].clone()).collect();
        match llama.chat_completion(&asked, options) {
            // Found before anything is computed, so asking again costs nothing.
            Err(Error::ContextOverflow { row, prompt, limit, .. }) if fitting.len() > 1 => {
                answers[fitting.remove(row)] = format!(
                    "Error: this dialog has {prompt} tokens, which leaves no room in {limit} (--max_seq_len)."
                );
            }
            answered => break answered?,
        }
    };
    for (row, prediction) in fitting.into_iter().zip(predictions) {
        answers[row] = prediction.generation.content;
    }
    Ok(answers)
}
