//! What the example programs share: the embedded model, the reference's flags, how a load and an error are shown, and how a program is one of
//! several ranks.

pub mod parallel;

pub mod progress;

use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use llama_core::checkpoint::{self, Checkpoint};
use llama_core::tokenizer::Tokenizer;
use llama_core::{BackendKind, Device, Llama, LlamaBuilder};

/// What the programs return: any error is shown with its causes.
pub type Outcome = Result<(), Box<dyn Error>>;

/// Where the model comes from and what it runs on: the reference's flags, and the choices that it does not have.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    /// Checkpoint: a folder with Meta's .pth shards or Hugging Face's safetensors, or a GGUF file [default: tiny-chat, which is built in]
    #[arg(long = "ckpt_dir", value_name = "PATH")]
    pub ckpt_dir: Option<PathBuf>,
    /// tokenizer.model or tokenizer.json [default: the one in the GGUF file, or beside the checkpoint]
    #[arg(long = "tokenizer_path", value_name = "FILE", requires = "ckpt_dir")]
    pub tokenizer_path: Option<PathBuf>,
    /// Engine that computes
    #[arg(long, default_value_t)]
    pub backend: BackendKind,
    /// Where it computes: cpu, cuda:N, metal:N
    #[arg(long, default_value_t)]
    pub device: Device,
    /// Seed of the sampling [default: 1]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Threads to compute on, of each rank [default: all, divided among the ranks of a host]
    #[arg(long)]
    pub threads: Option<usize>,
}

/// How answers are sampled: the reference's flags.
#[derive(Debug, Args)]
pub struct SamplingArgs {
    /// Randomness of the answers; 0 takes the most probable token
    #[arg(long, default_value_t = 0.6, allow_negative_numbers = true)]
    pub temperature: f64,
    /// Probability mass to sample from
    #[arg(long = "top_p", default_value_t = 0.9)]
    pub top_p: f64,
}

/// Bytes at an address that is a multiple of 64, so that tensors in them can be used where they lie.
#[repr(align(64))]
struct Aligned<const LEN: usize> {
    bytes: [u8; LEN],
}

static WEIGHTS: Aligned<{ include_bytes!("../../models/tiny-chat/consolidated.00.pth").len() }> =
    Aligned { bytes: *include_bytes!("../../models/tiny-chat/consolidated.00.pth") };

/// tiny-chat's `tokenizer.model`.
pub static TINY_CHAT_TOKENIZER: &[u8] = include_bytes!("../../models/tiny-chat/tokenizer.model");

/// A builder for tiny-chat, the model in the binary.
///
/// # Errors
///
/// None but for a binary that was built from a damaged model.
pub fn tiny_chat() -> Result<LlamaBuilder, llama_core::Error> {
    Ok(Llama::builder()
        .checkpoint_from(tiny_chat_checkpoint()?)
        .tokenizer_from(Tokenizer::from_bytes(TINY_CHAT_TOKENIZER)?))
}

/// The checkpoint of tiny-chat.
///
/// # Errors
///
/// As [`tiny_chat`].
pub fn tiny_chat_checkpoint() -> Result<Checkpoint, llama_core::Error> {
    let params = include_bytes!("../../models/tiny-chat/params.json");
    let weights: &'static [u8] = &WEIGHTS.bytes;
    Ok(checkpoint::from_bytes(params, [weights])?)
}

/// A model that is chosen, and not loaded yet.
#[derive(Debug)]
pub struct ModelToLoad {
    builder: LlamaBuilder,
    /// Whether it comes from files, which take their time.
    is_large: bool,
}

impl ModelArgs {
    /// Chooses the model and loads it: [`on_ranks`](Self::on_ranks) and [`ModelToLoad::load`] in one, for programs that begin with that.
    ///
    /// # Errors
    ///
    /// See [`LlamaBuilder::build`].
    pub fn load(&self, max_seq_len: usize, max_batch_size: usize) -> Result<Llama, llama_core::Error> {
        self.on_ranks(max_seq_len, max_batch_size)?.load()
    }

    /// Chooses the model, which is split over all ranks.
    ///
    /// Under `mpirun` that is rank 0's part, and returns at once. The other ranks wait for the model to be loaded, follow it, and their processes end in
    /// here when it is done: so the programs need not know of ranks, as long as **they open, listen and print after this alone**. Once in a program.
    ///
    /// # Errors
    ///
    /// None but for a binary that was built from a damaged model.
    pub fn on_ranks(
        &self,
        max_seq_len: usize,
        max_batch_size: usize,
    ) -> Result<ModelToLoad, llama_core::Error> {
        self.on_ranks_with(max_seq_len, max_batch_size, |builder| builder)
    }

    /// As [`on_ranks`](Self::on_ranks), with what a program wants of the model beside.
    ///
    /// # Errors
    ///
    /// As [`on_ranks`](Self::on_ranks).
    pub fn on_ranks_with(
        &self,
        max_seq_len: usize,
        max_batch_size: usize,
        choose: impl FnOnce(LlamaBuilder) -> LlamaBuilder,
    ) -> Result<ModelToLoad, llama_core::Error> {
        let model = self.choose(max_seq_len, max_batch_size, self.threads)?;
        Ok(ModelToLoad { builder: parallel::on_ranks(choose(model.builder)), ..model })
    }

    /// Loads a model beside the one that is split over the ranks, a guard or a judge: whole, on rank 0, and on its threads. After
    /// [`on_ranks`](Self::on_ranks), from which rank 0 alone returns.
    ///
    /// # Errors
    ///
    /// See [`LlamaBuilder::build`].
    pub fn load_beside(&self, max_seq_len: usize, max_batch_size: usize) -> Result<Llama, llama_core::Error> {
        self.choose(max_seq_len, max_batch_size, self.threads.or_else(parallel::n_threads))?.load()
    }

    fn choose(
        &self,
        max_seq_len: usize,
        max_batch_size: usize,
        threads: Option<usize>,
    ) -> Result<ModelToLoad, llama_core::Error> {
        let mut builder = match &self.ckpt_dir {
            Some(dir) => Llama::builder().checkpoint(dir),
            None => tiny_chat()?,
        };
        if let Some(path) = &self.tokenizer_path {
            builder = builder.tokenizer(path);
        }
        if let Some(threads) = threads {
            builder = builder.threads(threads);
        }
        if let Some(seed) = self.seed {
            builder = builder.seed(seed);
        }
        let builder = builder
            .backend(self.backend)
            .device(self.device)
            .max_seq_len(max_seq_len)
            .max_batch_size(max_batch_size);
        Ok(ModelToLoad { builder, is_large: self.ckpt_dir.is_some() })
    }
}

impl ModelToLoad {
    /// Loads the model, and shows on standard error how far it is and how long it took.
    ///
    /// # Errors
    ///
    /// See [`LlamaBuilder::build`].
    pub fn load(self) -> Result<Llama, llama_core::Error> {
        let started = Instant::now();
        let llama = show_progress(self.builder).build()?;
        for notice in llama.notices() {
            let _ = writeln!(io::stderr(), "{notice}");
        }
        if self.is_large {
            let _ = writeln!(io::stderr(), "Loaded in {:.2} seconds", started.elapsed().as_secs_f64());
        }
        Ok(llama)
    }
}

/// A bar that grows as the weights come in.
fn show_progress(builder: LlamaBuilder) -> LlamaBuilder {
    let bar = progress::bar("Loading", 0);
    builder.on_progress(move |done, total| {
        if bar.length() != Some(total) {
            bar.set_length(total);
        }
        bar.set_position(done);
        if done == total {
            bar.finish_and_clear();
        }
    })
}

/// Runs a program: an error is shown with its causes, and a reader that left (`| head`) is none.
pub fn run(program: impl FnOnce() -> Outcome) -> ExitCode {
    let Err(error) = program() else {
        parallel::finish();
        return ExitCode::SUCCESS;
    };
    if let Some(io) = error.downcast_ref::<io::Error>()
        && io.kind() == io::ErrorKind::BrokenPipe
    {
        parallel::finish();
        return ExitCode::SUCCESS;
    }
    let mut message = format!("error: {error}");
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        // Some errors tell their cause themselves.
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        cause = inner.source();
    }
    let _ = writeln!(io::stderr(), "{message}");
    parallel::give_up();
    ExitCode::FAILURE
}

/// `user` as `User`, for the reference's way to print a dialog.
#[must_use]
pub fn capitalize(role: &str) -> String {
    let mut chars = role.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
