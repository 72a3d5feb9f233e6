//! The flags, and what they make: the model with its guards, and who may ask.

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::builder::RangedU64ValueParser;
use clap::{Parser, value_parser};
use examples::{ModelArgs, ModelToLoad, SamplingArgs};
use llama_core::{Classifier, GenerationOptions, HoldBack, Llama, WhenFull, WordList};

use crate::guard::Counted;
use crate::metrics::Metrics;

/// Each may have a thread, while it is judged.
const MAX_CONCURRENT: u64 = 1 << 14;
const MAX_CONNECTIONS: u64 = 1 << 20;
const MAX_BODY_BYTES: u64 = 1 << 30;
/// A week.
const MAX_SECONDS: u64 = 7 * 24 * 60 * 60;

/// Serves a model to OpenAI's clients, and a page to chat with it at `/`. Without a checkpoint, the built-in tiny-chat answers.
#[derive(Debug, Parser)]
#[command(version)]
#[command(mut_arg("seed", |arg| arg.help("Seed of the first answer that asks for none; each later one has the next [default: random]")))]
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
    /// Answers that may be under way, whatever they wait for; beyond that, 429
    #[arg(long = "max_concurrent", default_value_t = 256, value_parser = up_to(MAX_CONCURRENT))]
    pub(crate) max_concurrent: usize,
    /// Connections that may be open; beyond that, they wait to be accepted
    #[arg(long = "max_connections", default_value_t = 512, value_parser = up_to(MAX_CONNECTIONS))]
    pub(crate) max_connections: usize,
    /// Bytes that a request may have; beyond that, 413
    #[arg(long = "max_body_bytes", default_value_t = 1 << 20, value_parser = up_to(MAX_BODY_BYTES))]
    pub(crate) max_body_bytes: usize,
    /// Log-probabilities that a request may ask for, all its answers and their tokens together; beyond that, 400. They are most of what an answer takes in memory, some 100 bytes each
    #[arg(long = "max_logprobs", default_value_t = 1 << 18)]
    pub(crate) max_logprobs: usize,
    /// Seconds that an answer may take once its prompt was judged, waiting for a slot included. It is then cut off, as by max_tokens, or an error where nothing of it was said. A client that has not read it a minute later is not waited for
    #[arg(long, default_value_t = 300, value_parser = value_parser!(u64).range(1..=MAX_SECONDS))]
    pub(crate) deadline: u64,
    /// Seconds that answers may still take at a shutdown
    #[arg(long, default_value_t = 30, value_parser = value_parser!(u64).range(..=MAX_SECONDS))]
    pub(crate) grace: u64,
    /// Seconds after which a stream with nothing to say sends a comment, so that no proxy takes it for dead
    #[arg(long = "keep_alive", default_value_t = 10, value_parser = value_parser!(u64).range(1..=MAX_SECONDS))]
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
    /// Name that requests may have in `Host` beside localhost and addresses; may be given several times [default: any where there is a key, or where others than this machine are served]
    #[arg(long = "allow_host", value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    allow_host: Vec<String>,
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
    pub(crate) fn load(&self, model: ModelToLoad, metrics: &Arc<Metrics>) -> Result<Llama, Box<dyn Error>> {
        let words = self.words.as_ref().map(WordList::open).transpose()?;
        let mut llama = model.load()?;
        if let Some(words) = words {
            llama = llama.with_guard(Counted::new(words, metrics));
        }
        if let Some(guard) = &self.guard {
            let args = ModelArgs {
                ckpt_dir: Some(guard.clone()),
                tokenizer_path: self.guard_tokenizer_path.clone(),
                ..self.model.clone()
            };
            let guard = args.load_beside(self.guard_max_seq_len, self.max_batch_size)?;
            llama = llama.with_guard(Counted::new(Classifier::new(guard), metrics));
        }
        Ok(llama.with_hold_back(self.hold_back))
    }

    /// How an answer is generated as far as a request says nothing about it.
    pub(crate) fn defaults(&self) -> GenerationOptions {
        GenerationOptions {
            temperature: self.sampling.temperature,
            top_p: self.sampling.top_p,
            deadline: Some(Duration::from_secs(self.deadline)),
            seed: self.model.seed,
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

    /// The key that clients must send. A variable that is there and cannot be a key is an error: who set it wants the server to be closed.
    pub(crate) fn api_key(&self) -> Result<Option<String>, String> {
        let key = match (&self.api_key, std::env::var_os("LLAMA_API_KEY")) {
            (Some(key), _) => key.clone(),
            (None, Some(key)) => key.into_string().map_err(|_| "the API key in LLAMA_API_KEY is no UTF-8")?,
            (None, None) => return Ok(None),
        };
        if key.is_empty() {
            return Err("the API key in LLAMA_API_KEY is empty: unset it to serve without one".to_owned());
        }
        // Whatever else is there, no client can send it in a header.
        match key.bytes().all(|byte| byte.is_ascii_graphic()) {
            true => Ok(Some(key)),
            false => Err("an API key is of visible ASCII characters alone".to_owned()),
        }
    }

    /// Names in `Host` that are this server's own, beside `localhost`; `None`: it does not matter. It does to a server for this machine
    /// alone, whom a web page of elsewhere must not reach in disguise, unless there is a key, which no page has.
    pub(crate) fn own_hosts(&self) -> Result<Option<Vec<String>>, String> {
        let is_open = self.bind.ip().is_loopback() && self.api_key()?.is_none();
        Ok((is_open || !self.allow_host.is_empty()).then(|| self.allow_host.clone()))
    }
}

/// A number of at least 1.
fn up_to(max: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=max)
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
