//! A model on ranks against the same model on one process of as many threads, and what a sum of all ranks costs by size.
//!
//! `mpirun -n 2 --bind-to none ranks --shape tinyllama --type q4_0`. Both models are measured in turns; while one process computes, the other ranks
//! sleep. A model too large to be in memory twice is measured one way after the other (`--apart`). `--record benches/record/ranks.csv` keeps every turn;
//! `benches/hosts/run.sh` measures ranks on hosts of their own, by link.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use benches::Error;
use benches::random_model::{FileType, Shape};
use benches::record::{self, Measure};
use clap::Parser;
use llama_backend::testing::RandomWeights;
use llama_backend::{Batch, LoadParams, Logits, Model, ModelSource, Ranks, Run, Slot, TokenId, Want};
use llama_core::{BackendKind, Communicator, Device, MpiCommunicator, checkpoint};

/// Measures a model on ranks against one process.
#[derive(Debug, Parser)]
struct Args {
    /// Checkpoint [default: random weights]
    #[arg(short = 'm', long = "model")]
    model: Option<PathBuf>,
    /// Shape of random weights
    #[arg(long, default_value = "tinyllama")]
    shape: Shape,
    /// Type of random weights
    #[arg(long = "type", default_value = "q4_0")]
    file_type: FileType,
    /// Tokens of a prompt
    #[arg(short = 'p', default_value_t = 512)]
    prompt: usize,
    /// Tokens of an answer
    #[arg(short = 'n', default_value_t = 64)]
    answer: usize,
    /// Threads of each rank; one process has as many as all ranks [default: a rank's part of its host]
    #[arg(short = 't', long)]
    threads: Option<usize>,
    /// Turns, of which the median counts; without any, only sums are measured
    #[arg(long, default_value_t = 5)]
    turns: usize,
    /// One way after the other, so that one model is in memory at a time
    #[arg(long)]
    apart: bool,
    /// The ranks alone, without one process beside them
    #[arg(long, conflicts_with = "apart")]
    split: bool,
    /// CSV file that every turn is appended to
    #[arg(long)]
    record: Option<PathBuf>,
    /// What is between the ranks, for the record
    #[arg(long, default_value = "one host")]
    link: String,
}

impl Args {
    fn name(&self) -> String {
        let file = self.model.as_ref().and_then(|path| path.file_stem());
        file.map_or_else(
            || format!("{} {}", self.shape.name(), self.file_type),
            |name| name.to_string_lossy().into_owned(),
        )
    }
}

fn main() -> ExitCode {
    benches::end(measure(&Args::parse()))
}

fn measure(args: &Args) -> Result<(), Error> {
    let mpi = MpiCommunicator::init()?;
    let sums = sums(&mpi)?;
    if args.turns == 0 {
        return Ok(mpi.finish()?);
    }
    let backend = BackendKind::Candle.open(Device::Cpu)?;
    let source = match &args.model {
        Some(path) => checkpoint::open(path)?.source(),
        None => {
            ModelSource::Weights(Arc::new(RandomWeights::new(args.shape.config(), args.file_type.dtype(), 1)))
        }
    };
    let threads = args.threads.unwrap_or_else(|| mpi.n_threads());
    let params = |threads| {
        let mut params = LoadParams::new(args.prompt + args.answer, 1);
        params.max_batch_tokens = args.prompt;
        params.threads = Some(threads);
        params
    };
    let ranks = Ranks::claim(Arc::<MpiCommunicator>::clone(&mpi))?;
    if mpi.rank() > 0 {
        ranks.follow(&*backend, source, params(threads))?;
    } else {
        let alone = || backend.load(source.clone(), &params(threads * mpi.size()));
        let split = || ranks.lead(&*backend, source.clone(), params(threads));
        let (mut one, mut all) = (Vec::new(), Vec::new());
        if args.apart {
            let mut alone = alone()?;
            for _ in 0..args.turns {
                one.push(Turn::take(&mut *alone, args)?);
            }
            drop(alone);
            let mut split = split()?;
            for _ in 0..args.turns {
                all.push(Turn::take(&mut *split, args)?);
            }
        } else {
            let mut alone = if args.split { None } else { Some(alone()?) };
            let mut split = split()?;
            for _ in 0..args.turns {
                if let Some(alone) = &mut alone {
                    one.push(Turn::take(&mut **alone, args)?);
                }
                all.push(Turn::take(&mut *split, args)?);
            }
        }
        let measured = Measured { threads, size: mpi.size(), sums, one, all };
        measured.report(args)?;
        if let Some(path) = &args.record {
            measured.keep(args, path)?;
        }
    }
    mpi.finish()?;
    Ok(())
}

/// How long a sum takes, by its numbers: one, those of a token, those of a prompt of 512. A round is the mean of some that follow each other.
fn sums(mpi: &MpiCommunicator) -> Result<Vec<(usize, Vec<Duration>)>, Error> {
    const ROUNDS: usize = 5;
    let mut out = io::stdout().lock();
    if mpi.rank() == 0 {
        writeln!(out, "sums of {} ranks\n  numbers      kB  microseconds    GB/s", mpi.size())?;
    }
    let mut sums = Vec::new();
    for len in [1, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 21] {
        let times = if len < 1 << 16 { 200 } else { 10 };
        let mut data = vec![0.0; len];
        let mut round = || {
            mpi.all_reduce_sum(&mut data)?; // they are all here
            let start = Instant::now();
            (0..times).try_for_each(|_| mpi.all_reduce_sum(&mut data))?;
            Ok::<_, Error>(start.elapsed() / times)
        };
        let rounds = (0..ROUNDS).map(|_| round()).collect::<Result<Vec<_>, _>>()?;
        let (bytes, seconds) = (len as f64 * 4.0, median(rounds.clone()).as_secs_f64());
        if mpi.rank() == 0 {
            let (kb, us, gbs) = (bytes / 1e3, seconds * 1e6, bytes / seconds / 1e9);
            writeln!(out, "{len:>9} {kb:>7.1} {us:>13.1} {gbs:>7.2}")?;
        }
        sums.push((len, rounds));
    }
    Ok(sums)
}

/// What a prompt and an answer took.
#[derive(Debug, Clone, Copy)]
struct Turn {
    prompt: Duration,
    answer: Duration,
}

impl Turn {
    fn take(model: &mut dyn Model, args: &Args) -> Result<Self, Error> {
        let mut logits = Logits::new();
        let vocab_size = model.config().vocab_size;
        let tokens: Vec<TokenId> =
            (0..args.prompt + args.answer).map(|i| TokenId((i * 31 % vocab_size) as u32)).collect();
        let mut feed = |start_pos: usize, n: usize| {
            let tokens = &tokens[start_pos..start_pos + n];
            model.forward(
                &Batch::new(&[Run { slot: Slot(0), start_pos, tokens, want: Want::Last }]),
                &mut logits,
            )
        };
        feed(0, 1)?; // wakes who sleeps
        let start = Instant::now();
        if args.prompt > 1 {
            feed(1, args.prompt - 1)?;
        }
        let prompt = start.elapsed();
        let start = Instant::now();
        (0..args.answer).try_for_each(|i| feed(args.prompt + i, 1))?;
        let answer = start.elapsed();
        model.truncate(Slot(0), 0)?;
        Ok(Self { prompt, answer })
    }
}

type Part = fn(&Turn) -> Duration;

/// The parts of a turn: their names, how many tokens they have, and what they took.
fn parts(args: &Args) -> [(String, usize, Part); 2] {
    let prompt = args.prompt.saturating_sub(1);
    [
        (format!("prefill_{prompt}"), prompt, |turn| turn.prompt),
        (format!("decode_{}", args.answer), args.answer, |turn| turn.answer),
    ]
}

struct Measured {
    /// Of each rank.
    threads: usize,
    size: usize,
    sums: Vec<(usize, Vec<Duration>)>,
    /// One process's turns.
    one: Vec<Turn>,
    /// All ranks'.
    all: Vec<Turn>,
}

impl Measured {
    fn report(&self, args: &Args) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(
            out,
            "{}: tokens a second of 1 rank × {} threads, of {} × {}, their ratio",
            args.name(),
            self.threads * self.size,
            self.size,
            self.threads,
        )?;
        for (name, tokens, part) in parts(args) {
            let rate = |turns: &[Turn]| {
                let times = turns.iter().map(part).collect();
                if turns.is_empty() { f64::NAN } else { tokens as f64 / median(times).as_secs_f64() }
            };
            let (one, all) = (rate(&self.one), rate(&self.all));
            writeln!(out, "{name:>11} {one:>9.1} {all:>9.1} {:>6.3}", all / one)?;
        }
        Ok(())
    }

    /// Appends every turn to a record; `_alone` are those of one process.
    fn keep(&self, args: &Args, path: &Path) -> Result<(), Error> {
        let mpi = record::said("mpirun", &["--version"]);
        let versions = [
            record::locked("candle-core"),
            ("mpi", mpi.lines().next().unwrap_or_default().to_owned()),
            ("link", args.link.clone()),
            ("model", args.name()),
            ("ranks", self.size.to_string()),
        ];
        let mut measures: Vec<(String, Vec<Duration>)> =
            self.sums.iter().map(|(len, rounds)| (format!("sum_{len}"), rounds.clone())).collect();
        for (name, _, part) in parts(args) {
            measures.push((format!("{name}_alone"), self.one.iter().map(part).collect()));
            measures.push((name, self.all.iter().map(part).collect()));
        }
        let measures: Vec<Measure<'_>> =
            measures.iter().map(|(name, rounds)| (&name[..], &rounds[..])).collect();
        record::append(path, self.threads * self.size, &versions, &measures)
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
