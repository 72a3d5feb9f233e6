//! Ours and other engines on the same file, in turns: what each program measured, and the ratios.
//!
//! Every program is a process of its own that prints rows of the same names as JSON, `llama-bench -o json` and the programs in
//! `benches/peers` alike. In each round every program runs once; a ratio is that of the medians over all rounds. What else the
//! machine does, it does to all of them.

mod gate;
mod table;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::Error;

pub use gate::{Gate, Gated, gate};
pub use table::{append, markdown};

/// What is asked of every program.
#[derive(Debug, Clone)]
pub struct Question {
    /// The file.
    pub model: PathBuf,
    /// What the file is called in the record: shape and type.
    pub model_name: String,
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// Tokens of the answer.
    pub n_gen: usize,
    /// Sequences that are answered at a time.
    pub batch: usize,
    /// Positions filled before.
    pub depth: usize,
    /// Threads.
    pub threads: usize,
}

/// A program that measures.
#[derive(Debug, Clone)]
pub struct Program {
    /// The file.
    pub path: PathBuf,
    /// What stands before the question's flags.
    pub first_args: Vec<OsString>,
    /// What stands after them.
    pub last_args: Vec<OsString>,
}

/// A row that a program printed.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Row {
    /// Whose it is.
    pub engine: String,
    /// What was measured: `pp512`, `tg64`.
    pub test: String,
    /// The threads.
    pub n_threads: usize,
    /// Tokens of the prompt; 0 in answers.
    pub n_prompt: usize,
    /// Tokens a second, the median of the run.
    pub median_ts: f64,
    /// Seconds from the file to a model that can be asked.
    pub load_s: f64,
    /// The most memory that the process took.
    pub peak_rss_bytes: Option<u64>,
    /// Of the bandwidth in an answer, of the FMA peak in a prompt.
    pub share_of_machine: Option<f64>,
    /// How fast memory is read.
    pub read_bytes_per_s: Option<f64>,
    /// How fast numbers are multiplied.
    pub fma_flops_per_s: Option<f64>,
    /// Whether flash attention was used, where there is a choice.
    pub flash_attn: Option<bool>,
    /// The versions of what was measured.
    pub versions: Option<String>,
    /// How it was built.
    pub system_info: Option<String>,
}

/// Why a program's figures could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// It could not be started.
    #[error("{}: {source}", .program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// It failed; what it had to say, it said.
    #[error("{} failed ({status})", .program.display())]
    Failed {
        /// The program.
        program: PathBuf,
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// It printed something else than rows.
    #[error("{} printed no rows: {source}", .program.display())]
    Output {
        /// The program.
        program: PathBuf,
        /// What is wrong with them.
        source: serde_json::Error,
    },
}

impl Program {
    /// This project's.
    #[must_use]
    pub fn ours(path: &Path, last_args: Vec<OsString>) -> Self {
        let first_args = ["-o", "json"].map(OsString::from).to_vec();
        Self { path: path.to_owned(), first_args, last_args }
    }

    /// One of `benches/peers`.
    #[must_use]
    pub fn peer(path: &Path) -> Self {
        Self { path: path.to_owned(), first_args: vec!["bench".into()], last_args: Vec::new() }
    }

    /// Runs it once.
    ///
    /// # Errors
    ///
    /// [`ProgramError`].
    pub fn run(&self, question: &Question) -> Result<Vec<Row>, ProgramError> {
        let program = || self.path.clone();
        let numbers = [
            ("-p", question.n_prompt),
            ("-n", question.n_gen),
            ("-b", question.batch),
            ("-d", question.depth),
            ("-t", question.threads),
            ("-r", 1),
        ];
        let mut command = Command::new(&self.path);
        command.args(&self.first_args).arg("-m").arg(&question.model);
        for (flag, n) in numbers {
            command.arg(flag).arg(n.to_string());
        }
        let output = command.args(&self.last_args).stderr(Stdio::inherit()).output();
        let output = output.map_err(|source| ProgramError::Start { program: program(), source })?;
        if !output.status.success() {
            return Err(ProgramError::Failed { program: program(), status: output.status });
        }
        serde_json::from_slice(&output.stdout)
            .map_err(|source| ProgramError::Output { program: program(), source })
    }

    /// Has the program do as it did in these rows where it has a choice: trying everything takes time, in every round.
    pub fn settle(&mut self, rows: &[Row]) {
        for row in rows {
            if let Some(flash) = row.flash_attn {
                let flag = if row.n_prompt > 0 { "--flash-prompt" } else { "--flash-answer" };
                self.last_args.extend([flag, if flash { "on" } else { "off" }].map(OsString::from));
            }
        }
    }
}

/// Runs all programs in turns, so many times, after a first time that is not counted.
///
/// # Errors
///
/// What a program says; what the gate says of the first time.
pub fn rounds(
    question: &Question,
    programs: &mut [Program],
    rounds: usize,
    mut check: impl FnMut(&[Row]) -> Result<(), Error>,
) -> Result<Vec<Vec<Row>>, Error> {
    for program in &mut *programs {
        let rows = program.run(question)?;
        check(&rows)?;
        program.settle(&rows);
    }
    let round = |_| programs.iter().map(|program| program.run(question)).collect::<Result<Vec<_>, _>>();
    let rounds: Vec<_> = (0..rounds).map(round).collect::<Result<_, _>>()?;
    Ok(rounds.into_iter().map(|programs| programs.into_iter().flatten().collect()).collect())
}

/// The middle value; of an even number, the upper of the two.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
