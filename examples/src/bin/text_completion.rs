//! Continues the reference's example prompts, or your own: `text_completion --ckpt_dir DIR --tokenizer_path FILE`.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use examples::{ModelArgs, Outcome, SamplingArgs};
use llama_core::CompletionOptions;

/// Continues texts in one batch, as the reference's example_text_completion.py does.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Tokens that a prompt and its continuation may have together
    #[arg(long = "max_seq_len", default_value_t = 128)]
    max_seq_len: usize,
    /// Prompts that run at a time
    #[arg(long = "max_batch_size", default_value_t = 4)]
    max_batch_size: usize,
    /// Tokens of a continuation at most
    #[arg(long = "max_gen_len", default_value_t = 64)]
    max_gen_len: usize,
    /// A prompt to continue; may be given several times [default: the reference's four]
    #[arg(long = "prompt", value_name = "TEXT")]
    prompts: Vec<String>,
}

fn main() -> ExitCode {
    examples::run(|| text_completion(&Args::parse()))
}

fn text_completion(args: &Args) -> Outcome {
    let prompts = match &*args.prompts {
        [] => serde_json::from_str(include_str!("../../data/prompts.json"))?,
        given => given.to_vec(),
    };
    let llama = args.model.load(args.max_seq_len, args.max_batch_size)?;
    let options = CompletionOptions {
        temperature: args.sampling.temperature,
        top_p: args.sampling.top_p,
        max_gen_len: Some(args.max_gen_len),
        ..Default::default()
    };
    let texts = llama.text_completion(&prompts, &options)?;

    let mut out = io::stdout().lock();
    for (prompt, text) in prompts.iter().zip(&texts) {
        writeln!(out, "{prompt}\n> {}", text.generation)?;
        writeln!(out, "\n==================================\n")?;
    }
    Ok(())
}
