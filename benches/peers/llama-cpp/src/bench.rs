//! The measurement: what llama.cpp's own `llama-bench` does, with its defaults, and `llama-batched-bench` for several sequences.
//!
//! Flash attention is on or off, whichever is faster: each test is tried both ways before it is measured. The KV cache is in f16, prompts
//! go in batches of 2048 in passes of 512 tokens, logits are computed for the last token: all as it comes.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use serde::Serialize;

use crate::{Error, built, open};

/// As this project's `llama-bench` has them.
#[derive(Debug, clap::Args)]
pub struct Flags {
    /// The GGUF file
    #[arg(short)]
    model: PathBuf,
    /// Tokens of the prompt; 0 for none
    #[arg(short = 'p', default_value_t = 512)]
    n_prompt: usize,
    /// Tokens to generate; 0 for none
    #[arg(short = 'n', default_value_t = 128)]
    n_gen: usize,
    /// Sequences that are generated at a time
    #[arg(short, default_value_t = 1)]
    batch: usize,
    /// Threads
    #[arg(short, default_value_t = 2)]
    threads: usize,
    /// Positions that are filled before
    #[arg(short, default_value_t = 0)]
    depth: usize,
    /// Measurements of each
    #[arg(short, default_value_t = 5)]
    repetitions: usize,
    /// Flash attention for prompts
    #[arg(long, value_enum, default_value_t = Flash::Best)]
    flash_prompt: Flash,
    /// Flash attention for answers
    #[arg(long, value_enum, default_value_t = Flash::Best)]
    flash_answer: Flash,
    /// Where tokens come from
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Whether flash attention is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Flash {
    On,
    Off,
    Best,
}

#[derive(Debug, Serialize)]
struct Row {
    engine: &'static str,
    versions: String,
    system_info: String,
    model_filename: PathBuf,
    model_size: u64,
    model_n_params: u64,
    n_threads: usize,
    n_prompt: usize,
    n_gen: usize,
    n_depth: usize,
    n_seqs: usize,
    test: String,
    flash_attn: bool,
    avg_ts: f64,
    stddev_ts: f64,
    median_ts: f64,
    samples_ts: Vec<f64>,
    time_to_first_token_s: Option<f64>,
    load_s: f64,
    peak_rss_bytes: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Prompt(usize),
    Answer { n: usize, batch: usize },
}

impl Kind {
    fn n_tokens(self) -> usize {
        match self {
            Self::Prompt(n) => n,
            Self::Answer { n, batch } => n * batch,
        }
    }
}

/// Measures, and says what was measured.
pub fn run(backend: &LlamaBackend, flags: &Flags) -> Result<String, Error> {
    if flags.threads == 0 || flags.batch == 0 || flags.repetitions == 0 {
        return Err("threads, sequences and repetitions are at least 1".into());
    }
    let start = Instant::now();
    let model = open(backend, &flags.model)?;
    drop(context(backend, &model, flags, Kind::Prompt(flags.n_prompt.max(1)), true)?);
    let load = start.elapsed();

    let answer = Kind::Answer { n: flags.n_gen, batch: flags.batch };
    let kinds = [Kind::Prompt(flags.n_prompt), answer].into_iter().filter(|kind| kind.n_tokens() > 0);
    let mut rows = Vec::new();
    for kind in kinds {
        rows.push(test(backend, &model, flags, kind, load)?);
    }
    Ok(serde_json::to_string_pretty(&rows)?)
}

fn test(
    backend: &LlamaBackend,
    model: &LlamaModel,
    flags: &Flags,
    kind: Kind,
    load: Duration,
) -> Result<Row, Error> {
    let wanted = match kind {
        Kind::Prompt(_) => flags.flash_prompt,
        Kind::Answer { .. } => flags.flash_answer,
    };
    let prepare = |flash| {
        let mut bench = Bench::new(context(backend, model, flags, kind, flash)?, model, flags);
        bench.fill(kind)?;
        bench.time(kind)?; // brings everything into place
        Ok::<_, Error>(bench)
    };
    let (flash, mut bench) = match wanted {
        Flash::On => (true, prepare(true)?),
        Flash::Off => (false, prepare(false)?),
        Flash::Best => {
            let (mut on, mut off) = (prepare(true)?, prepare(false)?);
            if on.time(kind)? <= off.time(kind)? { (true, on) } else { (false, off) }
        }
    };
    let times: Vec<_> = (0..flags.repetitions).map(|_| bench.time(kind)).collect::<Result<_, _>>()?;

    let mut rates: Vec<_> = times.iter().map(|time| kind.n_tokens() as f64 / time.as_secs_f64()).collect();
    let samples_ts = rates.clone();
    rates.sort_by(f64::total_cmp);
    let n = rates.len() as f64;
    let mean = rates.iter().sum::<f64>() / n;
    let squares = rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>();
    let median_ts = rates[rates.len() / 2];
    let (n_prompt, n_gen, n_seqs) = match kind {
        Kind::Prompt(n) => (n, 0, 1),
        Kind::Answer { n, batch } => (0, n, batch),
    };
    let name = match kind {
        Kind::Prompt(n) => format!("pp{n}"),
        Kind::Answer { n, batch: 1 } => format!("tg{n}"),
        Kind::Answer { n, batch } => format!("tg{n} x{batch}"),
    };
    Ok(Row {
        engine: "llama.cpp",
        versions: built::versions(),
        system_info: built::system_info(),
        model_filename: flags.model.clone(),
        model_size: model.size(),
        model_n_params: model.n_params(),
        n_threads: flags.threads,
        n_prompt,
        n_gen,
        n_depth: flags.depth,
        n_seqs,
        test: if flags.depth > 0 { format!("{name} @ d{}", flags.depth) } else { name },
        flash_attn: flash,
        avg_ts: mean,
        stddev_ts: if rates.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 },
        median_ts,
        samples_ts,
        time_to_first_token_s: (n_prompt > 0).then(|| n_prompt as f64 / median_ts),
        load_s: load.as_secs_f64(),
        peak_rss_bytes: peak_rss(),
    })
}

fn context<'a>(
    backend: &LlamaBackend,
    model: &'a LlamaModel,
    flags: &Flags,
    kind: Kind,
    flash: bool,
) -> Result<LlamaContext<'a>, Error> {
    let (len, batch) = match kind {
        Kind::Prompt(n) => (n, 1),
        Kind::Answer { n, batch } => (n, batch),
    };
    // Each sequence has its own part of the context, as llama.cpp's programs have it.
    let n_ctx = u32::try_from((flags.depth + len).next_multiple_of(256) * batch)?;
    let threads = i32::try_from(flags.threads)?;
    let policy = match flash {
        true => llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_ENABLED,
        false => llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_DISABLED,
    };
    let params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(n_ctx))
        .with_n_batch(2048)
        .with_n_ubatch(512)
        .with_n_seq_max(u32::try_from(batch)?)
        .with_n_threads(threads)
        .with_n_threads_batch(threads)
        .with_flash_attention_policy(policy)
        .with_no_perf(true);
    Ok(model.new_context(backend, params)?)
}

struct Bench<'a> {
    context: LlamaContext<'a>,
    batch: LlamaBatch<'static>,
    tokens: Vec<LlamaToken>,
    depth: usize,
}

impl<'a> Bench<'a> {
    fn new(context: LlamaContext<'a>, model: &LlamaModel, flags: &Flags) -> Self {
        let mut state = flags.seed;
        let n_vocab = u64::from(model.n_vocab().unsigned_abs()).max(1);
        let len = flags.depth + flags.n_prompt.max(flags.n_gen);
        let tokens = (0..len).map(|_| {
            // Knuth's multiplier; the upper bits are the random ones.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            LlamaToken((state >> 33).checked_rem(n_vocab).unwrap_or(0) as i32) // below the vocabulary's size
        });
        let (tokens, depth) = (tokens.collect(), flags.depth);
        Self { context, batch: LlamaBatch::new(2048.max(flags.batch), 1), tokens, depth }
    }

    /// Gives every sequence the same first positions.
    fn fill(&mut self, kind: Kind) -> Result<(), Error> {
        self.context.clear_kv_cache();
        if self.depth > 0 {
            self.prompt(0, self.depth)?;
            if let Kind::Answer { batch, .. } = kind {
                for sequence in 1..i32::try_from(batch)? {
                    self.context.copy_kv_cache_seq(0, sequence, None, None)?;
                }
            }
        }
        Ok(())
    }

    fn time(&mut self, kind: Kind) -> Result<Duration, Error> {
        let n_sequences = match kind {
            Kind::Prompt(_) => 1,
            Kind::Answer { batch, .. } => batch,
        };
        if self.depth == 0 {
            self.context.clear_kv_cache();
        } else {
            for sequence in 0..u32::try_from(n_sequences)? {
                self.context.clear_kv_cache_seq(Some(sequence), Some(u32::try_from(self.depth)?), None)?;
            }
        }
        let start = Instant::now();
        match kind {
            Kind::Prompt(n) => self.prompt(self.depth, n)?,
            Kind::Answer { n, batch } => self.answer(n, batch)?,
        }
        self.context.synchronize();
        Ok(start.elapsed())
    }

    fn prompt(&mut self, first: usize, n: usize) -> Result<(), Error> {
        let end = first + n;
        for start in (first..end).step_by(2048) {
            let stop = end.min(start + 2048);
            self.batch.clear();
            for pos in start..stop {
                self.batch.add(self.tokens[pos], i32::try_from(pos)?, &[0], pos + 1 == stop)?;
            }
            self.context.decode(&mut self.batch)?;
        }
        Ok(())
    }

    fn answer(&mut self, n: usize, n_sequences: usize) -> Result<(), Error> {
        for pos in self.depth..self.depth + n {
            self.batch.clear();
            for sequence in 0..i32::try_from(n_sequences)? {
                self.batch.add(self.tokens[pos], i32::try_from(pos)?, &[sequence], true)?;
            }
            self.context.decode(&mut self.batch)?;
            self.context.synchronize();
        }
        Ok(())
    }
}

/// The most memory that the process took, as Linux counts it.
fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
