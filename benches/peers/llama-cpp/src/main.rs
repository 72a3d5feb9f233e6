//! llama.cpp as a peer: measured like `llama-bench` measures this project, in the same words, on the same file.
//!
//! ```sh
//! export RUSTFLAGS=-Ctarget-cpu=native      # llama.cpp's GGML_NATIVE
//! cargo run --release -- bench -m model.gguf -p 512 -n 128 -t 2
//! cargo run --release -- quantize model.gguf model-q4_k_m.gguf q4_K_M
//! cargo run --release -- logits -m model.gguf --ids ids.txt --out logits.f32
//! ```
//!
//! A comparison with a llama.cpp that was built without this processor's instructions would be worth nothing: `bench` refuses then.

mod bench;
mod built;
mod logits;
mod quantize;

use std::path::PathBuf;

use clap::Parser;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;

/// Whatever stops the program.
type Error = Box<dyn std::error::Error>;

/// llama.cpp, measured.
#[derive(Debug, Parser)]
#[command(version)]
enum Command {
    /// How llama.cpp was built
    Info,
    /// How fast it is, as JSON
    Bench(bench::Flags),
    /// Quantises a GGUF file, anew where it is quantised already
    Quantize {
        /// The file
        from: PathBuf,
        /// The file to write
        to: PathBuf,
        /// f32, f16, q4_0, q8_0, q4_K_M and so on: any other name lists them
        file_type: String,
    },
    /// Writes the logits after every token, in f32
    Logits(logits::Flags),
}

fn main() -> Result<(), Error> {
    let mut backend = LlamaBackend::init()?;
    backend.void_logs();
    match Command::parse() {
        Command::Info => {
            println!("{}", built::system_info());
            println!("versions: {}", built::versions());
            built::check()?;
            Ok(())
        }
        Command::Bench(flags) => {
            built::check()?;
            println!("{}", bench::run(&backend, &flags)?);
            Ok(())
        }
        Command::Quantize { from, to, file_type } => quantize::run(&from, &to, &file_type),
        Command::Logits(flags) => logits::run(&backend, &flags),
    }
}

/// Opens a model with llama.cpp's defaults: mapped into memory, repacked where it has a layout for this processor.
fn open(backend: &LlamaBackend, path: &std::path::Path) -> Result<LlamaModel, Error> {
    if !path.is_file() {
        return Err(format!("{}: no such file", path.display()).into());
    }
    Ok(LlamaModel::load_from_file(backend, path, &LlamaModelParams::default())?)
}
