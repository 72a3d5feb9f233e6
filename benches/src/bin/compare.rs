//! Runs `llama-bench` and other engines' programs in turns on the same file, prints the ratios, and appends the rounds to a record.
//! `benches/peers/compare.sh` builds everything and calls it.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};

use benches::compare::{Gate, Program, Question, append, gate, markdown, rounds};
use benches::random_model::{FileType, RandomModel, Shape};
use benches::{Error, record};
use clap::Parser;

/// Ours and theirs in turns on the same file.
#[derive(Debug, Parser)]
struct Flags {
    /// The programs of other engines
    #[arg(long, required = true, num_args = 1..)]
    peer: Vec<PathBuf>,
    /// A GGUF file instead of random models
    #[arg(short, long)]
    model: Option<PathBuf>,
    /// The shape of the random models
    #[arg(long, default_value = "tinyllama")]
    random: Shape,
    /// Their types
    #[arg(long = "type", value_delimiter = ',', default_value = "q4_0,q8_0,q4_K_M,f16")]
    types: Vec<FileType>,
    /// Where random models are made, and kept
    #[arg(long, default_value = "target/models")]
    folder: PathBuf,
    #[arg(short = 'p', default_value_t = 512)]
    n_prompt: usize,
    #[arg(short = 'n', default_value_t = 64)]
    n_gen: usize,
    #[arg(short, default_value_t = 1)]
    batch: usize,
    #[arg(short, default_value_t = 0)]
    depth: usize,
    #[arg(short, long, value_delimiter = ',', default_value = "2,1")]
    threads: Vec<usize>,
    #[arg(short, long, default_value_t = 5)]
    rounds: usize,
    /// The backend, the computation and the cache of ours
    #[arg(long, default_value = "candle")]
    backend: String,
    #[arg(long)]
    computation: Option<String>,
    #[arg(long)]
    cache_type: Option<String>,
    /// Processes that keep a core busy meanwhile
    #[arg(long, default_value_t = 0)]
    busy: usize,
    /// The record to append to [default: benches/record/llama_cpp.csv]
    #[arg(long)]
    record: Option<PathBuf>,
    /// Only print: leave the record alone
    #[arg(long)]
    no_record: bool,
    /// Keep a core busy, and nothing else
    #[arg(long, hide = true)]
    spin: bool,
}

/// Processes that keep cores busy as long as this lives.
struct Busy(Vec<Child>);

impl Busy {
    fn start(n: usize) -> Result<Self, Error> {
        let mut busy = Self(Vec::new());
        for _ in 0..n {
            busy.0.push(Command::new(std::env::current_exe()?).arg("--spin").arg("--peer=none").spawn()?);
        }
        Ok(busy)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // One that is gone already is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn main() -> ExitCode {
    benches::end(run(Flags::parse()))
}

fn run(flags: Flags) -> Result<(), Error> {
    if flags.spin {
        loop {
            std::hint::spin_loop(); // until this process is killed
        }
    }
    let _busy = Busy::start(flags.busy)?;
    let models: Vec<(String, PathBuf)> = match &flags.model {
        Some(path) => {
            vec![(path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), path.clone())]
        }
        None => flags
            .types
            .iter()
            .map(|&kind| made(flags.random, kind, &flags.folder))
            .collect::<Result<_, _>>()?,
    };
    let bench = std::env::current_exe()?.with_file_name("llama-bench");
    let mut last_args: Vec<OsString> = vec!["--backend".into(), flags.backend.clone().into()];
    for (flag, choice) in [("--computation", &flags.computation), ("--cache-type", &flags.cache_type)] {
        if let Some(choice) = choice {
            last_args.extend([flag.into(), choice.into()]);
        }
    }
    let cpu = record::cpu();
    for (model_name, model) in &models {
        for &threads in &flags.threads {
            let question = Question {
                model: model.clone(),
                model_name: match flags.busy {
                    0 => model_name.clone(),
                    busy => format!("beside {busy} busy: {model_name}"),
                },
                n_prompt: flags.n_prompt,
                n_gen: flags.n_gen,
                batch: flags.batch,
                depth: flags.depth,
                threads,
            };
            let mut programs = vec![Program::ours(&bench, last_args.clone())];
            programs.extend(flags.peer.iter().map(|path| Program::peer(path)));
            let rounds = rounds(&question, &mut programs, flags.rounds, |rows| {
                let known = gate(&cpu, &question.model_name, rows)?;
                match known {
                    Gate::NothingKnown { cpu } if rows.iter().any(|row| row.engine == "llama.cpp") => {
                        say(&format!(
                            "{cpu}: another processor than the one that llama.cpp's figures are known of, or another question; its build was checked, its figures are not"
                        ))
                    }
                    _ => Ok(()),
                }
            })?;
            say(&markdown(&question, "llama-core", &rounds))?;
            if !flags.no_record {
                let standard = Path::new(env!("CARGO_MANIFEST_DIR")).join("record/llama_cpp.csv");
                append(flags.record.as_ref().unwrap_or(&standard), &question, &rounds)?;
            }
        }
    }
    Ok(())
}

fn say(text: &str) -> Result<(), Error> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

/// A random model's name and file, which is made where it is not there.
fn made(shape: Shape, file_type: FileType, folder: &Path) -> Result<(String, PathBuf), Error> {
    let name = format!("{} {file_type}", shape.name());
    let path = folder.join(format!("{}.gguf", name.replace(' ', "-")));
    if !path.exists() {
        std::fs::create_dir_all(folder)?;
        let model =
            RandomModel { config: shape.config(), name: name.clone(), file_type, pure: false, seed: 1 };
        let unfinished = path.with_extension("part");
        model.write(std::io::BufWriter::with_capacity(1 << 20, std::fs::File::create(&unfinished)?))?;
        std::fs::rename(unfinished, &path)?;
    }
    Ok((name, path))
}
