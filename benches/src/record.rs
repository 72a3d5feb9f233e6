//! Records: what was measured, round by round, beside everything that it depends on.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::Error;
use crate::marks::Marks;

/// Appends every round of `marks` to a CSV file, which is made where there is none.
///
/// # Errors
///
/// Where the file cannot be written.
pub fn append(path: &Path, marks: &Marks) -> Result<(), Error> {
    let versions = [("candle", locked("candle-core")), ("gemm", locked("gemm"))];
    let measures = [
        ("prefill_512", &marks.prefill[..]),
        ("prefill_512_candle_matmuls", &marks.products),
        ("decode", &marks.decode),
        ("read_1_gib", &marks.read),
    ];
    append_rounds(path, marks.n_threads, &versions, &measures)
}

/// Appends every round of these measures, beside the versions of what was measured.
///
/// # Errors
///
/// As [`append`].
pub fn append_rounds(
    path: &Path,
    n_threads: usize,
    versions: &[(&str, String)],
    measures: &[(&str, &[Duration])],
) -> Result<(), Error> {
    let (names, versions): (Vec<&str>, Vec<&str>) =
        versions.iter().map(|(name, version)| (*name, version.as_str())).unzip();
    let mut text = String::new();
    if !path.exists() {
        let names = names.join(",");
        writeln!(text, "date,commit,cpu,threads,rustflags,rustc,{names},load,measure,round,seconds")?;
    }
    let before = [
        said("date", &["-u", "+%FT%TZ"]),
        said("git", &["describe", "--always", "--dirty", "--exclude=*"]),
        cpu(),
        n_threads.to_string(),
        option_env!("RUSTFLAGS").unwrap_or_default().to_owned(),
        said("rustc", &["--version"]),
    ];
    let fixed: Vec<String> = before
        .into_iter()
        .chain(versions.into_iter().map(str::to_owned))
        .chain([load()])
        .map(|field| field.replace(',', " "))
        .collect();
    let fixed = fixed.join(",");
    for (measure, rounds) in measures {
        for (round, time) in rounds.iter().enumerate() {
            writeln!(text, "{fixed},{measure},{round},{:.6}", time.as_secs_f64())?;
        }
    }
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(text.as_bytes())?;
    Ok(())
}

/// What a program prints; nothing where there is no such program.
fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    output.map_or_else(|_| String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Linux only; empty elsewhere.
fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split(':').nth(1)).unwrap_or_default().trim().to_owned()
    };
    let (name, family, model) = (field("model name"), field("cpu family"), field("model\t"));
    format!("{name} family {family} model {model}")
}

/// The load average of the last minute, this program's own included.
fn load() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().unwrap_or_default().to_owned()
}

/// A package's version in the lock file.
#[must_use]
pub fn locked(package: &str) -> String {
    let mut lines = include_str!("../../Cargo.lock").lines();
    lines.find(|line| *line == format!("name = \"{package}\""));
    let version = lines.next().and_then(|line| line.split('"').nth(1));
    version.unwrap_or_default().to_owned()
}
