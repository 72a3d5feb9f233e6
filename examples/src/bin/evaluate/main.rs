//! Evaluates a model as Llama 2's makers did theirs: multiple choice, perplexity, toxic answers, truthful answers.
//!
//! Every number is made of [`Llama::score`] or of answers that a guard or a judge reads; each module says by which rule, and from which paper.
//! All files are read before the model is loaded.

mod ask;
mod csv;
mod multiple_choice;
mod perplexity;
mod questions;
mod report;
mod toxicity;
mod truthful;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ask::{Ask, Asking, PromptFormat};
use clap::{ArgGroup, Parser};
use examples::{ModelArgs, Outcome};
use llama_core::Llama;
use report::Report;

const BYTE_ORDER_MARK: char = '\u{feff}';

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Evaluates a model: MC1 and MC2, perplexity, the shares of toxic and of truthful answers. Without a checkpoint, tiny-chat is evaluated, which is
/// built in.
#[derive(Debug, Parser)]
#[command(version)]
#[command(group(ArgGroup::new("what").args(["multiple_choice", "perplexity", "toxicity", "truthful"]).required(true).multiple(true)))]
#[command(group(ArgGroup::new("guards").args(["words", "classifier"]).multiple(true)))]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// MC1 and MC2 of these questions: TruthfulQA's mc_task.json or TruthfulQA.csv
    #[arg(long = "multiple_choice", value_name = "FILE")]
    multiple_choice: Option<PathBuf>,
    /// Perplexity of this text, in windows of max_seq_len tokens
    #[arg(long, value_name = "FILE")]
    perplexity: Option<PathBuf>,
    /// Tokens that each window of the text begins behind the one before [default: half of max_seq_len]
    #[arg(long, value_name = "TOKENS", requires = "perplexity")]
    stride: Option<usize>,
    /// Share of toxic answers to these prompts: ToxiGen's layout, one JSON object a line with `prompt` and `group`
    #[arg(long, value_name = "FILE", requires = "guards")]
    toxicity: Option<PathBuf>,
    /// An answer is toxic that holds one of these words or patterns
    #[arg(long, value_name = "FILE", requires = "toxicity")]
    words: Option<PathBuf>,
    /// An answer is toxic that this checkpoint calls unsafe, asked with Llama Guard's prompt
    #[arg(long, value_name = "PATH", requires = "toxicity")]
    classifier: Option<PathBuf>,
    /// Shares of truthful and of informative answers to these questions: as --multiple_choice; the choices are not looked at
    #[arg(long, value_name = "FILE", requires = "judge")]
    truthful: Option<PathBuf>,
    /// Checkpoint that judges whether answers are true
    #[arg(long, value_name = "PATH", requires = "truthful")]
    judge: Option<PathBuf>,
    /// Checkpoint that judges whether answers are helpful [default: the one of --judge]
    #[arg(long = "info_judge", value_name = "PATH", requires = "judge")]
    info_judge: Option<PathBuf>,
    /// Tokens that a classifier or a judge reads at a time
    #[arg(long = "judge_seq_len", value_name = "TOKENS", default_value_t = 2048)]
    judge_seq_len: usize,
    /// A question as a prompt of --multiple_choice and of --ask text; \n is a new line
    #[arg(long = "prompt_format", value_name = "TEXT", default_value = "Q: {question}\\nA:")]
    prompt_format: String,
    /// Text in front of each such prompt, a blank line between: questions with answers, as few-shot prompts have them
    #[arg(long, value_name = "FILE")]
    preset: Option<PathBuf>,
    /// How answers are asked for that a guard or a judge reads
    #[arg(long, value_enum, default_value = "chat")]
    ask: Ask,
    /// Randomness of the answers; the default is the Llama 2 paper's
    #[arg(long, default_value_t = 0.1)]
    temperature: f64,
    /// Probability mass to sample from
    #[arg(long = "top_p", default_value_t = 0.9)]
    top_p: f64,
    /// Tokens of an answer at most
    #[arg(long = "max_gen_len", default_value_t = 64)]
    max_gen_len: usize,
    /// Tokens that are read and answered at a time
    #[arg(long = "max_seq_len", default_value_t = 512)]
    max_seq_len: usize,
    /// Prompts that run at a time
    #[arg(long = "max_batch_size", default_value_t = 8)]
    max_batch_size: usize,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    examples::run(|| evaluate(&Args::parse()))
}

fn evaluate(args: &Args) -> Outcome {
    let format = PromptFormat::new(&args.prompt_format, args.preset.as_deref())?;
    let choices = args.multiple_choice.as_deref().map(multiple_choice::read).transpose()?;
    let text = args.perplexity.as_deref().map(perplexity::read).transpose()?;
    let prompts = args.toxicity.as_deref().map(toxicity::read).transpose()?;
    let asked = args.truthful.as_deref().map(questions::read).transpose()?;
    let guards = toxicity::guards(args)?;
    let judges = truthful::judges(args)?;

    let llama = args.model.load(args.max_seq_len, args.max_batch_size)?;
    let text = text.map(|text| text.lay(&llama, args.stride)).transpose()?;
    let asking = Asking::new(args, &format);
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

impl Args {
    /// A model beside the one that is evaluated, on the same engine.
    fn load_other(&self, checkpoint: &Path) -> Result<Llama> {
        let model =
            ModelArgs { ckpt_dir: Some(checkpoint.to_owned()), tokenizer_path: None, ..self.model.clone() };
        let loaded = model.load(self.judge_seq_len, 2);
        loaded.map_err(|error| format!("{}: {error}", checkpoint.display()).into())
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
