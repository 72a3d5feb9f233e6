//! Workloads, as functions that do one unit of work; marks, which are ratios of them; and programs that measure any checkpoint.
//!
//! A figure alone says more of the machine than of the code. What is claimed here is a ratio of two workloads that were measured
//! in turns within one run: whatever else the machine does, it does to both.
//!
//! - `cargo run --release -p benches --bin llama-bench -- -m FILE_OR_DIR` measures a checkpoint, in the words of llama.cpp's program of
//!   that name; `--random 7b --type q4_0 --write FILE.gguf` makes one.
//! - `benches/peers/compare.sh` measures ours and other engines in turns on the same file, into `llama_cpp.csv`; the program `plot` draws it.
//! - `benches/peers/accuracy.sh` measures how far ours and llama.cpp's answers are from exact arithmetic, into `kl_divergence.csv`.
//! - `cargo bench -p benches` measures each workload with criterion, then the marks.
//! - `cargo run --release -p benches --bin record` measures the marks and appends what it measured to `benches/record/candle.csv`.
//! - `cargo bench -p benches --features tch --bench tch` measures the libtorch backend beside candle on the same workloads.
//! - `cargo run --release -p benches --features tch --bin record_tch` measures a model of TinyLlama's shape, and every product that
//!   the libtorch backend could have chosen, and appends to `benches/record/tch.csv` and `tch_ops.csv`.
//! - `mpirun -n 2 --bind-to none target/release/ranks --shape tinyllama --type q4_0`, built with the feature `mpi`, measures a model on ranks against
//!   one process of as many threads, and sums by size; `benches/hosts/run.sh` measures it on hosts of their own, by link, and `expect` says what the record
//!   lets expect of other links and models.
//! - `cargo run --release -p benches --features onnx --bin record_onnx` does the same for ONNX Runtime, into `onnx.csv`.

use std::io::{self, Write as _};
use std::process::ExitCode;

pub mod bandwidth;
pub mod compare;
pub mod engine;
pub mod fma;
pub mod gguf;
pub mod kl;
pub mod llama_bench;
pub mod marks;
pub mod memory;
#[cfg(feature = "mpi")]
pub mod network;
#[cfg(feature = "onnx")]
pub mod onnx;
pub mod plot;
pub mod random_model;
pub mod record;
#[cfg(feature = "tch")]
pub mod tch_marks;
#[cfg(feature = "tch")]
pub mod tch_ops;
pub mod workload;

/// Whatever stops a benchmark.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// How a program ends: what stopped it is told as a sentence.
pub fn end(result: Result<(), Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where nobody listens, the exit status still tells.
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}
