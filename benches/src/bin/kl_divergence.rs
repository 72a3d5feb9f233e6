//! How far answers are from those of exact arithmetic on the same quantised file: ours, and whoever's logits are given.
//! `benches/peers/accuracy.sh` makes the files and calls it.

use std::fs::{self, File};
use std::io::{BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use benches::engine::{self, Choices, Computation};
use benches::kl::{Divergence, InF32, load, logits, read_logits};
use benches::{Error, record};
use clap::Parser;
use llama_backend::{Logits, TokenId};
use llama_core::{BackendKind, checkpoint};

/// The mean KL divergence from f32 logits on the same dequantised weights.
#[derive(Debug, Parser)]
struct Flags {
    /// The GGUF file
    #[arg(short, long)]
    model: PathBuf,
    /// A file of token ids, separated by whitespace
    #[arg(long)]
    ids: PathBuf,
    /// Logits that another engine wrote for the same ids and windows, with its name: llama.cpp=logits.f32
    #[arg(long, value_parser = named)]
    logits: Vec<(String, PathBuf)>,
    /// Tokens that are read together
    #[arg(long, default_value_t = 512)]
    window: usize,
    /// At most so many positions
    #[arg(long)]
    positions: Option<usize>,
    #[arg(short, long)]
    threads: Option<usize>,
    #[arg(long, default_value = "candle")]
    backend: BackendKind,
    #[command(flatten)]
    choices: Choices,
    /// Appends the result to a CSV file
    #[arg(long)]
    record: Option<PathBuf>,
}

fn named(argument: &str) -> Result<(String, PathBuf), String> {
    let (name, path) = argument.split_once('=').ok_or("expected NAME=FILE")?;
    Ok((name.to_owned(), path.into()))
}

fn main() -> ExitCode {
    benches::end(run(Flags::parse()))
}

fn run(flags: Flags) -> Result<(), Error> {
    if flags.window == 0 {
        return Err("--window is at least 1".into());
    }
    let text = fs::read_to_string(&flags.ids)?;
    let ids = text.split_whitespace().map(|id| id.parse().map(TokenId));
    let ids: Vec<_> = ids.take(flags.positions.unwrap_or(usize::MAX)).collect::<Result<_, _>>()?;
    let checkpoint = checkpoint::open(&flags.model)?;
    let exact = Choices { computation: Some(Computation::Exact), cache_type: None };
    let exact = InF32(engine::open(flags.backend, exact)?);
    let mut exact = load(&checkpoint, &exact, flags.window, flags.threads)?;
    let mut ours =
        load(&checkpoint, &*engine::open(flags.backend, flags.choices)?, flags.window, flags.threads)?;

    let name = match flags.choices {
        choices if choices == Choices::default() => format!("llama-core {}", flags.backend),
        choices => format!("llama-core {} {choices}", flags.backend),
    };
    let mut found = vec![(name, Divergence::default())];
    let mut others = Vec::new();
    for (name, path) in &flags.logits {
        others.push(BufReader::with_capacity(1 << 20, File::open(path)?));
        found.push((name.clone(), Divergence::default()));
    }
    let vocab_size = checkpoint.config().vocab_size;
    let (mut expected, mut rows) = (Logits::new(), Logits::new());
    for window in ids.chunks(flags.window) {
        logits(&mut *exact, window, &mut expected)?;
        let (first, rest) = found.split_at_mut(1);
        logits(&mut *ours, window, &mut rows)?;
        first[0].1.add(&expected, &rows);
        for (other, (_, divergence)) in others.iter_mut().zip(rest) {
            read_logits(other, window.len(), vocab_size, &mut rows)?;
            divergence.add(&expected, &rows);
        }
    }
    print(&found)?;
    match &flags.record {
        Some(path) => append(path, &flags.model, &found),
        None => Ok(()),
    }
}

fn print(found: &[(String, Divergence)]) -> Result<(), Error> {
    let mut out = std::io::stdout();
    writeln!(
        out,
        "| engine | positions | mean KL, nats | ours over theirs | largest | same top token | largest logit difference |"
    )?;
    writeln!(out, "|---|---|---|---|---|---|---|")?;
    for (i, (name, it)) in found.iter().enumerate() {
        let ratio = if i == 0 { String::new() } else { format!("{:.3}", found[0].1.mean() / it.mean()) };
        writeln!(
            out,
            "| {name} | {} | {:.3e} | {ratio} | {:.3e} | {:.2} % | {:.3} |",
            it.n(),
            it.mean(),
            it.max(),
            100.0 * it.same_top(),
            it.max_difference()
        )?;
    }
    Ok(())
}

fn append(path: &Path, model: &Path, found: &[(String, Divergence)]) -> Result<(), Error> {
    let new = !path.exists();
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path)?;
    if new {
        writeln!(file, "date,commit,cpu,model,engine,positions,mean_kl,max_kl,same_top,max_difference")?;
    }
    let model = model.file_name().unwrap_or_default().to_string_lossy();
    for (name, it) in found {
        writeln!(
            file,
            "{},{model},{name},{},{:e},{:e},{},{}",
            record::when_and_where().join(","),
            it.n(),
            it.mean(),
            it.max(),
            it.same_top(),
            it.max_difference()
        )?;
    }
    Ok(())
}
