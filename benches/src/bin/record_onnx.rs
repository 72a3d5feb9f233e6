//! Measures the ONNX Runtime backend at TinyLlama's shape and appends the rounds to `benches/record/onnx.csv`: two threads,
//! 10 GB of memory. `record_onnx prefill`, `decode`, `batch` or `blocks`: one of the four, in a minute or two.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use benches::{Error, onnx, record};

fn main() -> ExitCode {
    benches::end(run())
}

fn run() -> Result<(), Error> {
    const THREADS: usize = 2;
    let name = std::env::args().nth(1).unwrap_or_default();
    let parts = onnx::Part::ALL;
    let Some((_, part)) = parts.into_iter().find(|(known, _)| *known == name) else {
        return Err(format!("{name:?}: which of {:?} is to be measured?", parts.map(|(name, _)| name)).into());
    };
    let rounds = if matches!(part, onnx::Part::Batch | onnx::Part::Blocks) { 3 } else { 5 };
    let times = onnx::measure(part, THREADS, rounds)?;
    #[allow(clippy::print_stdout, reason = "this program's output")]
    for (name, rounds) in &times {
        let tokens = match *name {
            name if name.starts_with("prefill_512") => onnx::PROMPT,
            name if name.starts_with("decode_64_batch") => onnx::NEW * onnx::BATCH,
            _ => onnx::NEW,
        };
        let best = rounds.iter().min().copied().unwrap_or(Duration::ZERO);
        println!("{name}: {:.2} tokens/s at best, rounds {rounds:.2?}", tokens as f64 / best.as_secs_f64());
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("record/onnx.csv");
    let versions = [("onnxruntime", ort::info().to_owned()), record::locked("ort")];
    let measures: Vec<_> = times.iter().map(|(name, rounds)| (*name, &rounds[..])).collect();
    record::append(&path, THREADS, &versions, &measures)
}
