//! Measures the libtorch backend's marks and its products, and appends the rounds to `benches/record/tch.csv` and `tch_ops.csv`.

#![allow(clippy::print_stdout, reason = "this program's output")]

use std::path::Path;
use std::process::ExitCode;

use benches::tch_marks::TchMarks;
use benches::{Error, record, tch_ops};

fn main() -> ExitCode {
    benches::end(run())
}

fn run() -> Result<(), Error> {
    let n_threads = std::thread::available_parallelism()?.get();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("record");
    let packages = ["tch", "candle-core"].map(record::locked);

    let calls = tch_ops::measure(n_threads, 7)?;
    for (case, ratio, fastest) in tch_ops::ratios(&calls) {
        println!("{case}: {ratio:.2} of the fastest call ({fastest})");
    }
    let rounds: Vec<record::Measure<'_>> =
        calls.iter().map(|(name, times)| (&name[..], &times[..])).collect();
    record::append(&folder.join("tch_ops.csv"), n_threads, &packages, &rounds)?;

    let marks = TchMarks::measure(n_threads, 3)?;
    println!("{marks}");
    record::append(&folder.join("tch.csv"), n_threads, &packages, &marks.measures())
}
