//! Writes a checkpoint as an ONNX graph: `export_onnx --ckpt_dir DIR OUT`. Plain onnxruntime runs OUT/model.onnx, and so do the
//! other programs here: `chat --backend onnx --ckpt_dir OUT`.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use examples::{Outcome, TINY_CHAT_TOKENIZER, tiny_chat_checkpoint};
use llama_backend::{Batch, LoadParams, Logits, Run, Slot, Want};
use llama_backend_onnx::export_onnx;
use llama_core::checkpoint::{self, Checkpoint};
use llama_core::{BackendKind, Device, TokenId};
use serde_json::json;

/// Exports a checkpoint, tiny-chat where none is given, with its tokenizer beside it.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Folder with the checkpoint: Meta's .pth shards, or Hugging Face's safetensors [default: tiny-chat, which is built in]
    #[arg(long = "ckpt_dir", value_name = "DIR")]
    ckpt_dir: Option<PathBuf>,
    /// Positions that the graph is made for
    #[arg(long = "max_seq_len", default_value_t = 512)]
    max_seq_len: usize,
    /// Also write a JSON file with some tokens and the logits after them, to compare other engines with
    #[arg(long, value_name = "FILE")]
    logits: Option<PathBuf>,
    /// Engine that computes those
    #[arg(long, default_value_t)]
    backend: BackendKind,
    /// The folder to make
    out: PathBuf,
}

fn main() -> ExitCode {
    examples::run(|| export(&Args::parse()))
}

fn export(args: &Args) -> Outcome {
    let checkpoint = match &args.ckpt_dir {
        Some(dir) => checkpoint::open(dir)?,
        None => tiny_chat_checkpoint()?,
    };
    export_onnx(&*checkpoint.weights(), args.max_seq_len, &args.out)?;
    match (checkpoint.tokenizer_path(), &args.ckpt_dir) {
        (Some(path), _) => drop(fs::copy(path, args.out.join(path.file_name().unwrap_or_default()))?),
        (None, None) => fs::write(args.out.join("tokenizer.model"), TINY_CHAT_TOKENIZER)?,
        (None, Some(_)) => {} // its own folder has none either
    }
    if let Some(path) = &args.logits {
        fs::write(path, logits(&checkpoint, args.backend)?)?;
    }
    Ok(())
}

/// `{"tokens": [n], "logits": [n, vocab_size]}` for a text of no meaning.
fn logits(checkpoint: &Checkpoint, backend: BackendKind) -> Result<String, Box<dyn std::error::Error>> {
    const N: usize = 24;
    let vocab_size = checkpoint.config().vocab_size as u32;
    let tokens: Vec<TokenId> = (0..N as u32).map(|i| TokenId((i * i * 37 + 1) % vocab_size)).collect();
    let mut model = backend.open(Device::Cpu)?.load(checkpoint.source(), &LoadParams::new(N, 1))?;
    let mut logits = Logits::new();
    let run = Run { slot: Slot(0), start_pos: 0, tokens: &tokens, want: Want::All };
    model.forward(&Batch::new(&[run]), &mut logits)?;
    let (ids, rows): (Vec<u32>, Vec<&[f32]>) =
        (tokens.iter().map(|token| token.0).collect(), logits.rows().collect());
    Ok(json!({ "tokens": ids, "logits": rows }).to_string())
}
