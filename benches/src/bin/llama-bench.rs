//! Measures how fast a checkpoint answers, in llama.cpp's words; makes random models as GGUF files. `llama-bench --help` has the flags.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use benches::llama_bench::flags::{Flags, Job, ModelFrom, Output};
use benches::llama_bench::{measure, report};
use benches::random_model::RandomModel;
use benches::{Error, engine};
use clap::Parser;

fn main() -> ExitCode {
    benches::end(run(&Flags::parse()))
}

fn run(flags: &Flags) -> Result<(), Error> {
    let (model, plan) = match flags.job()? {
        Job::Write { model, to } => return write(&model, File::create(to)?),
        Job::Measure { model, plan } => (model, plan),
    };
    let backend = engine::open(flags.backend, flags.choices)?;
    let made; // the file is gone when this is
    let path: &Path = match &model {
        ModelFrom::Checkpoint(path) => path,
        ModelFrom::Random(model) => {
            made = tempfile::Builder::new().prefix("llama-bench-").suffix(".gguf").tempfile()?;
            write(model, made.reopen()?)?;
            made.path()
        }
    };
    let sessions = measure::measure(path, &backend, &plan)?;
    let text = match flags.output {
        Output::Md => report::markdown(&sessions),
        Output::Json => report::json(path, &sessions, flags.choices)? + "\n",
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn write(model: &RandomModel, file: File) -> Result<(), Error> {
    Ok(model.write(BufWriter::with_capacity(1 << 20, file))?)
}
