//! A model on ranks against the same model on one process of as many threads, and what a sum of all ranks costs by size.
//!
//! `mpirun -n 2 --bind-to none ranks --shape tinyllama --type q4_0`. Both models are measured in turns; while one process computes, the other ranks
//! sleep. A model too large to be in memory twice is measured one way after the other (`--apart`).

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use benches::random_model::{FileType, Shape};
use clap::Parser;
use llama_backend::testing::RandomWeights;
use llama_backend::{Batch, LoadParams, Logits, Model, ModelSource, Ranks, Run, Slot, TokenId, Want};
use llama_core::{BackendKind, Communicator, Device, MpiCommunicator, checkpoint};

/// Measures a model on ranks against one process.
#[derive(Debug, Parser)]
struct Args {
    /// Checkpoint [default: random weights]
    #[arg(short = 'm', long = "model")]
    model: Option<String>,
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
    /// Turns, of which the median counts
    #[arg(long, default_value_t = 5)]
    turns: usize,
    /// One way after the other, so that one model is in memory at a time
    #[arg(long)]
    apart: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match measure(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &Args) -> Result<(), Box<dyn Error>> {
    let mpi = MpiCommunicator::init()?;
    sums(&mpi)?;
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
        let (one, all) = if args.apart {
            let one = (0..args.turns).map({
                let mut model = alone()?;
                move |_| Turn::take(&mut *model, args)
            });
            let one = one.collect::<Result<Vec<_>, _>>()?;
            let mut model = split()?;
            let all =
                (0..args.turns).map(|_| Turn::take(&mut *model, args)).collect::<Result<Vec<_>, _>>()?;
            (one, all)
        } else {
            let (mut alone, mut split) = (alone()?, split()?);
            let (mut one, mut all) = (Vec::new(), Vec::new());
            for _ in 0..args.turns {
                one.push(Turn::take(&mut *alone, args)?);
                all.push(Turn::take(&mut *split, args)?);
            }
            (one, all)
        };
        report(args, threads, mpi.size(), &one, &all)?;
    }
    mpi.finish()?;
    Ok(())
}

/// Microseconds that one sum takes, by its numbers: those of one token to those of a prompt of 512.
fn sums(mpi: &MpiCommunicator) -> Result<(), Box<dyn Error>> {
    /// Sums at a time, whose median counts.
    const TIMES: usize = 51;
    let mut out = io::stdout().lock();
    if mpi.rank() == 0 {
        writeln!(out, "sums of {} ranks\n  numbers      kB  microseconds    GB/s", mpi.size())?;
    }
    for len in [1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 21] {
        let mut data = vec![0.0; len];
        let mut times = Vec::with_capacity(TIMES);
        for _ in 0..TIMES {
            mpi.barrier()?;
            let start = Instant::now();
            mpi.all_reduce_sum(&mut data)?;
            times.push(start.elapsed());
        }
        let (bytes, seconds) = (len as f64 * 4.0, median(times).as_secs_f64());
        if mpi.rank() == 0 {
            let (kb, us, gbs) = (bytes / 1e3, seconds * 1e6, bytes / seconds / 1e9);
            writeln!(out, "{len:>9} {kb:>7.0} {us:>13.1} {gbs:>7.2}")?;
        }
    }
    Ok(())
}

/// What a prompt and an answer took.
#[derive(Debug, Clone, Copy)]
struct Turn {
    prompt: Duration,
    answer: Duration,
}

impl Turn {
    fn take(model: &mut dyn Model, args: &Args) -> Result<Self, Box<dyn Error>> {
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

fn report(
    args: &Args,
    threads: usize,
    size: usize,
    one: &[Turn],
    all: &[Turn],
) -> Result<(), Box<dyn Error>> {
    let mut out = io::stdout().lock();
    let what = args.model.clone().unwrap_or_else(|| format!("{} {}", args.shape.name(), args.file_type));
    writeln!(
        out,
        "{what}: tokens a second of 1 rank × {} threads, of {size} × {threads}, their ratio",
        threads * size
    )?;
    type Part = fn(&Turn) -> Duration;
    let parts: [(&str, usize, Part); 2] = [
        ("prefill", args.prompt.saturating_sub(1), |turn| turn.prompt),
        ("decode", args.answer, |turn| turn.answer),
    ];
    for (name, tokens, part) in parts {
        let rate = |turns: &[Turn]| tokens as f64 / median(turns.iter().map(part).collect()).as_secs_f64();
        let (one, all) = (rate(one), rate(all));
        writeln!(out, "{name:>9} {one:>9.1} {all:>9.1} {:>6.3}", all / one)?;
    }
    Ok(())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
