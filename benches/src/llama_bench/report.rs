//! The result as a Markdown table, with llama.cpp's columns, or as JSON, with its names where it has one.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use crate::engine::Choices;

use super::measure::{Kind, Session, Test};

/// One row of the table, with everything that is known about it.
#[derive(Debug, Serialize)]
struct Row<'a> {
    engine: &'static str,
    versions: String,
    model_filename: &'a Path,
    model_type: String,
    model_size: Option<u64>,
    model_n_params: Option<u64>,
    backend: &'static str,
    n_threads: usize,
    n_prompt: usize,
    n_gen: usize,
    n_depth: usize,
    n_seqs: usize,
    test: String,
    avg_ts: f64,
    stddev_ts: f64,
    median_ts: f64,
    samples_ts: Vec<f64>,
    /// From a prompt to the logits of the token after it; absent in answers.
    time_to_first_token_s: Option<f64>,
    /// Of the bandwidth in an answer, of the FMA peak in a prompt.
    share_of_machine: Option<f64>,
    decode_bytes: Option<u64>,
    load_s: f64,
    peak_rss_bytes: Option<u64>,
    anonymous_bytes: Option<u64>,
    file_bytes: Option<u64>,
    planned_bytes: Option<u64>,
    read_bytes_per_s: Option<f64>,
    fma_flops_per_s: Option<f64>,
}

/// The rows as JSON.
///
/// # Errors
///
/// Never, but that serde's interface has one.
pub fn json(path: &Path, sessions: &[Session], choices: Choices) -> Result<String, serde_json::Error> {
    let rows: Vec<_> = sessions
        .iter()
        .flat_map(|session| session.tests.iter().map(move |test| row(path, session, test, choices)))
        .collect();
    serde_json::to_string_pretty(&rows)
}

fn row<'a>(path: &'a Path, session: &Session, test: &Test, choices: Choices) -> Row<'a> {
    let (mean, stddev) = mean_and_stddev(&test.rates());
    let (n_prompt, n_gen, n_seqs) = match test.kind {
        Kind::Prompt(n) => (n, 0, 1),
        Kind::Answer { n, batch } => (0, n, batch),
    };
    Row {
        engine: "llama-core",
        versions: format!("llama-core {}; {}; {choices}", env!("CARGO_PKG_VERSION"), session.backend),
        model_filename: path,
        model_type: model_type(session),
        model_size: session.weights.as_ref().map(|weights| weights.n_bytes),
        model_n_params: session.weights.as_ref().map(|weights| weights.n_params),
        backend: session.backend,
        n_threads: session.threads,
        n_prompt,
        n_gen,
        n_depth: test.depth,
        n_seqs,
        test: name(test),
        avg_ts: mean,
        stddev_ts: stddev,
        median_ts: test.n_tokens() as f64 / test.median(),
        samples_ts: test.rates(),
        time_to_first_token_s: (n_prompt > 0).then(|| test.median()),
        share_of_machine: session.share(test),
        decode_bytes: session.weights.as_ref().map(|weights| weights.decode_bytes),
        load_s: session.load.as_secs_f64(),
        peak_rss_bytes: session.memory.map(|memory| memory.peak),
        anonymous_bytes: session.memory.map(|memory| memory.anonymous),
        file_bytes: session.memory.map(|memory| memory.file),
        planned_bytes: session.planned,
        read_bytes_per_s: session.bandwidth,
        fma_flops_per_s: session.fma,
    }
}

/// The rows as a table, and below it what is the same for all rows on so many threads.
#[must_use]
pub fn markdown(sessions: &[Session]) -> String {
    let mut table = vec![
        ["model", "size", "params", "backend", "threads", "test", "t/s", "of the machine"].map(str::to_owned),
    ];
    let mut below = String::new();
    for session in sessions {
        let weights = session.weights.as_ref();
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
        for test in &session.tests {
            let (mean, stddev) = mean_and_stddev(&test.rates());
            let what = if matches!(test.kind, Kind::Prompt(_)) { "FMA peak" } else { "bandwidth" };
            table.push([
                model_type(session),
                or_dash(weights.map(|weights| gib(weights.n_bytes))),
                or_dash(weights.map(|weights| format!("{:.2} B", weights.n_params as f64 / 1e9))),
                session.backend.to_owned(),
                session.threads.to_string(),
                name(test),
                format!("{mean:.2} ± {stddev:.2}"),
                or_dash(session.share(test).map(|share| format!("{:.0} % of {what}", 100.0 * share))),
            ]);
        }
        below += &summary(session);
    }
    let mut out = String::new();
    let width = |column: usize| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 8] = std::array::from_fn(width);
    for (i, row) in table.iter().enumerate() {
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            let padding = " ".repeat(width - cell.chars().count());
            let _ = match is_number(column) {
                true => write!(out, "| {padding}{cell} "),
                false => write!(out, "| {cell}{padding} "),
            }; // a String takes everything
        }
        out += "|\n";
        if i == 0 {
            for (column, width) in widths.into_iter().enumerate() {
                let colon = if is_number(column) { ":" } else { " " };
                let _ = write!(out, "| {}{colon}", "-".repeat(width));
            }
            out += "|\n";
        }
    }
    out + "\n" + &below
}

/// Columns that are written to the right.
fn is_number(column: usize) -> bool {
    matches!(column, 1 | 2 | 4 | 5 | 6)
}

fn summary(session: &Session) -> String {
    let mut out = format!("{} threads: loaded in {:.2} s", session.threads, session.load.as_secs_f64());
    if let Some(bandwidth) = session.bandwidth {
        out += &format!("; memory is read at {:.1} GB/s at most", bandwidth / 1e9);
    }
    if let Some(fma) = session.fma {
        out += &format!("; the f32 FMA peak is {:.0} GFLOP/s", fma / 1e9);
    }
    out += "\n";
    for test in &session.tests {
        if let Kind::Prompt(n) = test.kind {
            let at = if test.depth > 0 { format!(" after {} others", test.depth) } else { String::new() };
            out += &format!("first token of a prompt of {n}{at}: after {:.2} s\n", test.median());
        }
    }
    if let Some(memory) = session.memory {
        let planned =
            session.planned.map_or_else(String::new, |planned| format!("; planned: {}", gib(planned)));
        out += &format!(
            "peak memory: {} (at the end {} of its own, {} of files{planned})\n",
            gib(memory.peak),
            gib(memory.anonymous),
            gib(memory.file),
        );
    }
    out
}

fn gib(bytes: u64) -> String {
    const GIB: f64 = (1 << 30) as f64;
    match bytes as f64 / GIB {
        gib if gib < 1.0 => format!("{:.2} MiB", gib * 1024.0),
        gib => format!("{gib:.2} GiB"),
    }
}

fn model_type(session: &Session) -> String {
    match &session.weights {
        Some(weights) => format!("llama {:.1}B {}", weights.n_params as f64 / 1e9, weights.dtype),
        None => format!("llama {:.1}B graph", session.config.n_params() as f64 / 1e9),
    }
}

fn name(test: &Test) -> String {
    let name = match test.kind {
        Kind::Prompt(n) => format!("pp{n}"),
        Kind::Answer { n, batch: 1 } => format!("tg{n}"),
        Kind::Answer { n, batch } => format!("tg{n} x{batch}"),
    };
    if test.depth > 0 { format!("{name} @ d{}", test.depth) } else { name }
}

fn mean_and_stddev(rates: &[f64]) -> (f64, f64) {
    let n = rates.len() as f64;
    let mean = rates.iter().sum::<f64>() / n;
    let squares = rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>();
    (mean, if rates.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 })
}
