//! candle-transformers' `quantized_llama` as a peer: measured like `llama-bench` measures this project, in the same words, on the same
//! file.
//!
//! ```sh
//! RUSTFLAGS=-Ctarget-cpu=native cargo run --release -- bench -m model.gguf -p 512 -n 128 -t 2
//! ```
//!
//! As its own examples do, a prompt goes in one piece; several sequences are rows of one tensor.

use std::fs::File;
use std::io::BufReader;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use clap::Parser;
use serde::Serialize;

/// Whatever stops the program.
type Error = Box<dyn std::error::Error + Send + Sync>;

/// What candle takes its number of threads from, when it is first asked for.
const THREADS: [&str; 2] = ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"];

/// candle, measured.
#[derive(Debug, Parser)]
#[command(version)]
enum Program {
    /// How candle was built
    Info,
    /// How fast it is, as JSON
    Bench(Flags),
}

/// As this project's `llama-bench` has them.
#[derive(Debug, clap::Args)]
struct Flags {
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
    /// Where tokens come from
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Serialize)]
struct Row {
    engine: &'static str,
    versions: String,
    system_info: String,
    model_filename: PathBuf,
    n_threads: usize,
    n_prompt: usize,
    n_gen: usize,
    n_depth: usize,
    n_seqs: usize,
    test: String,
    avg_ts: f64,
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

    fn n_sequences(self) -> usize {
        match self {
            Self::Prompt(_) => 1,
            Self::Answer { batch, .. } => batch,
        }
    }
}

fn main() -> Result<(), Error> {
    match Program::parse() {
        Program::Info => println!("candle: {}; {}", system_info(), versions()),
        Program::Bench(flags) => {
            let threads = flags.threads.to_string();
            if THREADS.iter().any(|name| std::env::var(name).as_ref() != Ok(&threads)) {
                let mut again = Command::new(std::env::current_exe()?);
                again.args(std::env::args_os().skip(1)).envs(THREADS.map(|name| (name, &threads)));
                return Err(again.exec().into()); // which comes back only when it fails
            }
            println!("{}", bench(&flags)?);
        }
    }
    Ok(())
}

fn bench(flags: &Flags) -> Result<String, Error> {
    if flags.threads == 0 || flags.batch == 0 || flags.repetitions == 0 {
        return Err("threads, sequences and repetitions are at least 1".into());
    }
    let start = Instant::now();
    let (model, n_vocab) = open(&flags.model)?;
    let load = start.elapsed();
    let mut bench = Bench { model, tokens: tokens(flags, n_vocab), depth: flags.depth };
    let answer = Kind::Answer { n: flags.n_gen, batch: flags.batch };
    let kinds = [Kind::Prompt(flags.n_prompt), answer].into_iter().filter(|kind| kind.n_tokens() > 0);
    let mut rows = Vec::new();
    for kind in kinds {
        bench.fill(kind)?;
        bench.time(kind)?; // brings everything into place
        let times: Vec<_> = (0..flags.repetitions).map(|_| bench.time(kind)).collect::<Result<_, _>>()?;
        rows.push(row(flags, kind, &times, load));
    }
    Ok(serde_json::to_string_pretty(&rows)?)
}

fn row(flags: &Flags, kind: Kind, times: &[Duration], load: Duration) -> Row {
    let samples_ts: Vec<_> = times.iter().map(|time| kind.n_tokens() as f64 / time.as_secs_f64()).collect();
    let mut sorted = samples_ts.clone();
    sorted.sort_by(f64::total_cmp);
    let median_ts = sorted[sorted.len() / 2];
    let (n_prompt, n_gen, name) = match kind {
        Kind::Prompt(n) => (n, 0, format!("pp{n}")),
        Kind::Answer { n, batch: 1 } => (0, n, format!("tg{n}")),
        Kind::Answer { n, batch } => (0, n, format!("tg{n} x{batch}")),
    };
    Row {
        engine: "candle-transformers",
        versions: versions(),
        system_info: system_info(),
        model_filename: flags.model.clone(),
        n_threads: flags.threads,
        n_prompt,
        n_gen,
        n_depth: flags.depth,
        n_seqs: kind.n_sequences(),
        test: if flags.depth > 0 { format!("{name} @ d{}", flags.depth) } else { name },
        avg_ts: samples_ts.iter().sum::<f64>() / samples_ts.len() as f64,
        median_ts,
        samples_ts,
        time_to_first_token_s: (n_prompt > 0).then(|| n_prompt as f64 / median_ts),
        load_s: load.as_secs_f64(),
        peak_rss_bytes: peak_rss(),
    }
}

/// The model, and the size of its vocabulary.
fn open(path: &Path) -> Result<(ModelWeights, usize), Error> {
    let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
    let content = Content::read(&mut file)?;
    let embedding = content.tensor_infos.get("token_embd.weight").ok_or("the file has no embedding")?;
    let n_vocab = embedding.shape.dims().first().copied().ok_or("the embedding has no rows")?;
    Ok((ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?, n_vocab))
}

fn tokens(flags: &Flags, n_vocab: usize) -> Vec<u32> {
    let mut state = flags.seed;
    let token = |_| {
        // Knuth's multiplier; the upper bits are the random ones.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33).checked_rem(n_vocab as u64).unwrap_or(0) as u32 // below the vocabulary's size
    };
    (0..flags.depth + flags.n_prompt.max(flags.n_gen)).map(token).collect()
}

struct Bench {
    /// With the first positions in its cache. Weights and cache are shared by its clones until they append.
    model: ModelWeights,
    tokens: Vec<u32>,
    depth: usize,
}

impl Bench {
    fn fill(&mut self, kind: Kind) -> Result<(), Error> {
        self.model.clear_kv_cache();
        if self.depth > 0 {
            let mut model = self.model.clone();
            self.feed(&mut model, 0, self.depth, kind.n_sequences())?;
            self.model = model;
        }
        Ok(())
    }

    fn time(&self, kind: Kind) -> Result<Duration, Error> {
        let mut model = self.model.clone();
        let start = Instant::now();
        match kind {
            Kind::Prompt(n) => self.feed(&mut model, self.depth, n, 1)?,
            Kind::Answer { n, batch } => {
                (self.depth..self.depth + n).try_for_each(|pos| self.feed(&mut model, pos, 1, batch))?;
            }
        }
        Ok(start.elapsed())
    }

    /// Appends `n` tokens to each of so many sequences.
    fn feed(&self, model: &mut ModelWeights, pos: usize, n: usize, n_sequences: usize) -> Result<(), Error> {
        let row = Tensor::new(&self.tokens[pos..pos + n], &Device::Cpu)?.unsqueeze(0)?;
        let logits = model.forward(&row.repeat((n_sequences, 1))?, pos)?;
        std::hint::black_box(logits);
        Ok(())
    }
}

fn versions() -> String {
    let version = |package: &str| {
        let mut lines = include_str!("../Cargo.lock").lines();
        lines.find(|line| *line == format!("name = \"{package}\""));
        let version = lines.next().and_then(|line| line.split('"').nth(1)).unwrap_or("?");
        format!("{package} {version}")
    };
    ["candle-core", "candle-transformers"].map(version).join("; ")
}

/// What candle says that it was built for, in llama.cpp's form.
fn system_info() -> String {
    let uses = [
        ("AVX2", candle_core::utils::with_avx()),
        ("F16C", candle_core::utils::with_f16c()),
        ("NEON", candle_core::utils::with_neon()),
        ("AVX512", cfg!(target_feature = "avx512f")),
        ("AVX512_VNNI", cfg!(target_feature = "avx512vnni")),
    ];
    uses.map(|(name, uses)| format!("{name} = {}", u8::from(uses))).join(" | ")
}

/// The most memory that the process took, as Linux counts it.
fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
