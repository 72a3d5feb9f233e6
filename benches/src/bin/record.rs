//! Measures the candle backend's marks and appends the rounds to `benches/record/candle.csv`.

use std::path::Path;
use std::process::ExitCode;

use benches::marks::Marks;
use benches::{Error, record};

fn main() -> ExitCode {
    benches::end(run())
}

fn run() -> Result<(), Error> {
    let marks = Marks::measure(9)?;
    #[allow(clippy::print_stdout, reason = "this program's output")]
    {
        println!("{marks}");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("record/candle.csv");
    let measures: [record::Measure<'_>; 4] = [
        ("prefill_512", &marks.prefill),
        ("prefill_512_candle_matmuls", &marks.products),
        ("decode", &marks.decode),
        ("read_1_gib", &marks.read),
    ];
    record::append(&path, marks.n_threads, &["candle-core", "gemm"].map(record::locked), &measures)
}
