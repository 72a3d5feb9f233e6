//! The logits after every token of a text, for whoever compares engines: rows of the vocabulary's size in f32, little-endian.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::num::NonZeroU32;
use std::path::PathBuf;

use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::token::LlamaToken;

use crate::{Error, open};

/// What to compute.
#[derive(Debug, clap::Args)]
pub struct Flags {
    /// The GGUF file
    #[arg(short)]
    model: PathBuf,
    /// A file of token ids, separated by whitespace
    #[arg(long)]
    ids: PathBuf,
    /// The file to write
    #[arg(long)]
    out: PathBuf,
    /// Tokens that are read together; the next ones know nothing of them. As many as one pass holds
    #[arg(long, default_value_t = 512)]
    window: usize,
    /// Threads
    #[arg(short, default_value_t = 2)]
    threads: i32,
}

/// Computes and writes.
pub fn run(backend: &LlamaBackend, flags: &Flags) -> Result<(), Error> {
    let model = open(backend, &flags.model)?;
    let text = std::fs::read_to_string(&flags.ids)?;
    let ids: Vec<i32> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    if let Some(id) = ids.iter().find(|id| !(0..model.n_vocab()).contains(*id)) {
        return Err(format!("token {id} is none of the {} of the model", model.n_vocab()).into());
    }
    let window = u32::try_from(flags.window)?;
    let params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(window))
        .with_n_batch(window)
        .with_n_ubatch(window)
        .with_n_threads(flags.threads)
        .with_n_threads_batch(flags.threads);
    let mut context = model.new_context(backend, params)?;
    let mut batch = LlamaBatch::new(flags.window, 1);
    let mut out = BufWriter::new(File::create(&flags.out)?);
    for ids in ids.chunks(flags.window.max(1)) {
        context.clear_kv_cache();
        batch.clear();
        for (pos, &id) in (0..).zip(ids) {
            batch.add(LlamaToken(id), pos, &[0], true)?;
        }
        context.decode(&mut batch)?;
        for (row, _) in (0..).zip(ids) {
            for logit in context.get_logits_ith(row) {
                out.write_all(&logit.to_le_bytes())?;
            }
        }
    }
    out.flush()?;
    Ok(())
}
