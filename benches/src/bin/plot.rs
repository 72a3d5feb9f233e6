//! Draws the ratios of a record: `plot benches/record/llama_cpp.csv picture.svg`, with `--theirs candle` for another engine's.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use benches::plot::{ratios, svg};
use benches::{Error, record};
use clap::Parser;

/// The ratios of a record as SVG.
#[derive(Debug, Parser)]
struct Flags {
    /// The record
    record: PathBuf,
    /// The picture
    picture: PathBuf,
    /// Whose tokens a second
    #[arg(long, default_value = "llama-core")]
    ours: String,
    /// Over whose
    #[arg(long, default_value = "llama.cpp")]
    theirs: String,
    /// On which processor, as the record has it [default: this one]
    #[arg(long)]
    cpu: Option<String>,
    /// Only models whose name begins so
    #[arg(long, default_value = "")]
    model: String,
}

fn main() -> ExitCode {
    benches::end(run(Flags::parse()))
}

fn run(flags: Flags) -> Result<(), Error> {
    let cpu = flags.cpu.unwrap_or_else(record::cpu);
    let mut ratios = ratios(&fs::read_to_string(flags.record)?, &cpu, &flags.ours, &flags.theirs)?;
    ratios.retain(|ratio| ratio.model.starts_with(&flags.model));
    let title = format!("Tokens a second: {} over {}", flags.ours, flags.theirs);
    fs::write(flags.picture, svg(&ratios, &title, &cpu))?;
    Ok(())
}
