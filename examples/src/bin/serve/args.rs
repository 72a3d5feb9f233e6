//! The flags, and what they make: the model with its guards, and who may ask.

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use examples::{ModelArgs, ModelToLoad, SamplingArgs};
use llama_core::{Classifier, GenerationOptions, HoldBack, Llama, WhenFull, WordList};

/// Serves a model to OpenAI's clients, and a page to chat with it at `/`. Without a checkpoint, the built-in tiny-chat answers.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    /// Tokens that prompt and answer may have together
    #[arg(long = "max_seq_len", default_value_t = 512)]
    pub(crate) max_seq_len: usize,
    /// Prompts that run at a time
    #[arg(long = "max_batch_size", default_value_t = 8)]
    pub(crate) max_batch_size: usize,
    /// Prompts that may wait for their turn; beyond that, 429
    #[arg(long = "max_queue_len", default_value_t = 256)]
    pub(crate) max_queue_len: usize,
    /// Requests that may be under way, whatever they wait for; beyond that, 429
    #[arg(long = "max_concurrent", default_value_t = 256, value_parser = at_least_1)]
    pub(crate) max_concurrent: usize,
    /// Connections that may be open; beyond that, they wait to be accepted
    #[arg(long = "max_connections", default_value_t = 512, value_parser = at_least_1)]
    pub(crate) max_connections: usize,
    /// Bytes that a request may have; beyond that, 413
    #[arg(long = "max_body_bytes", default_value_t = 1 << 20, value_parser = at_least_1)]
    pub(crate) max_body_bytes: usize,
    /// Seconds that an answer may take, waiting included; it is then cut off
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) deadline: u64,
    /// Seconds that answers may still take at a shutdown
    #[arg(long, default_value_t = 30)]
    pub(crate) grace: u64,
    /// Seconds after which a stream with nothing to say sends a comment, so that no proxy takes it for dead
    #[arg(long = "keep_alive", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) keep_alive: u64,
    /// Address and port; port 0 takes any that is free
    #[arg(long, default_value = "127.0.0.1:8080")]
    pub(crate) bind: SocketAddr,
    /// The model's name for clients [default: the checkpoint's]
    #[arg(long = "model_name", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    model_name: Option<String>,
    /// Key that clients must send; better in the variable LLAMA_API_KEY, since others on this machine can read flags
    #[arg(long = "api_key", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    api_key: Option<String>,
    /// Origin of web pages that may ask, or *; may be given several times [default: this server's own alone]
    #[arg(long = "allow_origin", value_name = "ORIGIN")]
    pub(crate) allow_origin: Vec<String>,
    /// Refuse what holds words and patterns of this list
    #[arg(long, value_name = "FILE")]
    words: Option<PathBuf>,
    /// Refuse what this checkpoint, a Llama Guard, holds for unsafe
    #[arg(long, value_name = "CHECKPOINT")]
    guard: Option<PathBuf>,
    /// The guard's tokenizer [default: as for `--tokenizer_path`]
    #[arg(long = "guard_tokenizer_path", value_name = "FILE", requires = "guard")]
    guard_tokenizer_path: Option<PathBuf>,
    /// Tokens that the guard reads at a time; longer conversations are refused
    #[arg(long = "guard_max_seq_len", default_value_t = 2048, requires = "guard")]
    guard_max_seq_len: usize,
    /// How much of an answer is held back until it is judged: sentence, answer, or a number of characters
    #[arg(long = "hold_back", default_value = "sentence", value_parser = hold_back)]
    hold_back: HoldBack,
}

impl Args {
    /// The model, on all ranks, of which this one alone returns.
    pub(crate) fn on_ranks(&self) -> Result<ModelToLoad, llama_core::Error> {
        let queue = |builder: llama_core::LlamaBuilder| builder.max_queue_len(self.max_queue_len);
        self.model.on_ranks_with(self.max_seq_len, self.max_batch_size, queue)
    }

    /// Loads the model and its guards.
    pub(crate) fn load(&self, model: ModelToLoad) -> Result<Llama, Box<dyn Error>> {
        let words = self.words.as_ref().map(WordList::open).transpose()?;
        let mut llama = model.load()?;
        if let Some(words) = words {
            llama = llama.with_guard(words);
        }
        if let Some(guard) = &self.guard {
            let args = ModelArgs {
                ckpt_dir: Some(guard.clone()),
                tokenizer_path: self.guard_tokenizer_path.clone(),
                ..self.model.clone()
            };
            llama = llama
                .with_guard(Classifier::new(args.load_beside(self.guard_max_seq_len, self.max_batch_size)?));
        }
        Ok(llama.with_hold_back(self.hold_back))
    }

    /// How an answer is generated as far as a request says nothing about it.
    pub(crate) fn defaults(&self) -> GenerationOptions {
        GenerationOptions {
            temperature: self.sampling.temperature,
            top_p: self.sampling.top_p,
            deadline: Some(Duration::from_secs(self.deadline)),
            when_full: WhenFull::Refuse,
            ..Default::default()
        }
    }

    pub(crate) fn is_guarded(&self) -> bool {
        self.words.is_some() || self.guard.is_some()
    }

    /// `llama-2-7b-chat` for a folder or a file of that name.
    pub(crate) fn model_name(&self) -> String {
        let Some(path) = &self.model.ckpt_dir else {
            return self.model_name.clone().unwrap_or_else(|| "tiny-chat".to_owned());
        };
        // `.` has a name too.
        let path = path.canonicalize().unwrap_or_else(|_| path.clone());
        let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
        let name = name.map_or_else(|| "llama-2".to_owned(), |name| name.to_string_lossy().into_owned());
        self.model_name.clone().unwrap_or(name)
    }

    pub(crate) fn api_key(&self) -> Option<String> {
        let variable = || std::env::var("LLAMA_API_KEY").ok().filter(|key| !key.is_empty());
        self.api_key.clone().or_else(variable)
    }
}

fn at_least_1(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("expected at least 1".to_owned()),
        Ok(n) => Ok(n),
        Err(error) => Err(format!("{error}")),
    }
}

fn hold_back(text: &str) -> Result<HoldBack, String> {
    match text {
        "sentence" => Ok(HoldBack::Sentence),
        "answer" => Ok(HoldBack::Answer),
        n => n
            .parse()
            .map(HoldBack::Characters)
            .map_err(|_| "expected sentence, answer, or a number".to_owned()),
    }
}
