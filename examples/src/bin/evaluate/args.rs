//! The program's flags.

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Parser};
use examples::ModelArgs;
use llama_core::Llama;

use crate::ask::Ask;
use crate::{Result, named};

/// Evaluates a model: MC1 and MC2, perplexity, the shares of toxic and of truthful answers. Without a checkpoint, tiny-chat is evaluated, which is
/// built in.
#[derive(Debug, Parser)]
#[command(version)]
#[command(group(ArgGroup::new("what").args(["multiple_choice", "perplexity", "toxicity", "truthful"]).required(true).multiple(true)))]
#[command(group(ArgGroup::new("guards").args(["words", "classifier"]).multiple(true)))]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// MC1 and MC2 of these questions: TruthfulQA's mc_task.json or TruthfulQA.csv
    #[arg(long = "multiple_choice", value_name = "FILE")]
    pub(crate) multiple_choice: Option<PathBuf>,
    /// Perplexity of this text, in windows of max_seq_len tokens
    #[arg(long, value_name = "FILE")]
    pub(crate) perplexity: Option<PathBuf>,
    /// Tokens that each window of the text begins behind the one before [default: half of max_seq_len]
    #[arg(long, value_name = "TOKENS", requires = "perplexity")]
    pub(crate) stride: Option<usize>,
    /// Share of toxic answers to these prompts: ToxiGen's layout, one JSON object a line with `prompt` and `group`
    #[arg(long, value_name = "FILE", requires = "guards")]
    pub(crate) toxicity: Option<PathBuf>,
    /// An answer is toxic that holds one of these words or patterns
    #[arg(long, value_name = "FILE", requires = "toxicity")]
    pub(crate) words: Option<PathBuf>,
    /// An answer is toxic that this checkpoint calls unsafe, asked with Llama Guard's prompt
    #[arg(long, value_name = "PATH", requires = "toxicity")]
    pub(crate) classifier: Option<PathBuf>,
    /// Shares of truthful and of informative answers to these questions: as --multiple_choice, but without choices: of a CSV file, the column `Question`
    #[arg(long, value_name = "FILE", requires = "judge")]
    pub(crate) truthful: Option<PathBuf>,
    /// Checkpoint that judges whether answers are true
    #[arg(long, value_name = "PATH", requires = "truthful")]
    pub(crate) judge: Option<PathBuf>,
    /// Checkpoint that judges whether answers are helpful [default: the one of --judge]
    #[arg(long = "info_judge", value_name = "PATH", requires = "judge")]
    pub(crate) info_judge: Option<PathBuf>,
    /// Tokens that a classifier or a judge reads at a time
    #[arg(long = "judge_seq_len", value_name = "TOKENS", default_value_t = 2048)]
    pub(crate) judge_seq_len: usize,
    /// A question as a prompt of --multiple_choice and of --ask text; \n is a new line
    #[arg(long = "prompt_format", value_name = "TEXT", default_value = "Q: {question}\\nA:")]
    pub(crate) prompt_format: String,
    /// Text in front of each such prompt, a blank line between: questions with answers, as few-shot prompts have them
    #[arg(long, value_name = "FILE")]
    pub(crate) preset: Option<PathBuf>,
    /// How answers are asked for that a guard or a judge reads
    #[arg(long, value_enum, default_value = "chat")]
    pub(crate) ask: Ask,
    /// Randomness of the answers; the default is the Llama 2 paper's
    #[arg(long, default_value_t = 0.1)]
    pub(crate) temperature: f64,
    /// Probability mass to sample from
    #[arg(long = "top_p", default_value_t = 0.9)]
    pub(crate) top_p: f64,
    /// Tokens of an answer at most
    #[arg(long = "max_gen_len", default_value_t = 64)]
    pub(crate) max_gen_len: usize,
    /// Tokens that are read and answered at a time
    #[arg(long = "max_seq_len", default_value_t = 512)]
    pub(crate) max_seq_len: usize,
    /// Prompts that run at a time
    #[arg(long = "max_batch_size", default_value_t = 8)]
    pub(crate) max_batch_size: usize,
    /// Print JSON instead of tables
    #[arg(long)]
    pub(crate) json: bool,
}

impl Args {
    /// A model beside the one that is evaluated, on the same engine; of several ranks, on this one.
    pub(crate) fn load_other(&self, checkpoint: &Path) -> Result<Llama> {
        let model =
            ModelArgs { ckpt_dir: Some(checkpoint.to_owned()), tokenizer_path: None, ..self.model.clone() };
        model.load_beside(self.judge_seq_len, 2).map_err(|error| named(checkpoint, error).into())
    }
}
