//! Records: what was measured, round by round, beside everything that it depends on.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::Error;

/// What was measured, round by round.
pub type Measure<'a> = (&'a str, &'a [Duration]);

/// Something whose version matters, and its version.
pub type Version<'a> = (&'a str, String);

/// Appends every round to a CSV file, which is made where there is none.
///
/// # Errors
///
/// Where the file cannot be written.
pub fn append(
    path: &Path,
    n_threads: usize,
    versions: &[Version<'_>],
    measures: &[Measure<'_>],
) -> Result<(), Error> {
    let names: String = versions.iter().map(|(name, _)| format!("{name},")).collect();
    let header = format!("date,commit,cpu,threads,rustflags,rustc,{names}load,measure,round,seconds\n");
    let mut text = if path.exists() { String::new() } else { header };
    let before = [
        said("date", &["-u", "+%FT%TZ"]),
        said("git", &["describe", "--always", "--dirty", "--exclude=*"]),
        cpu(),
        n_threads.to_string(),
        option_env!("RUSTFLAGS").unwrap_or_default().to_owned(),
        said("rustc", &["--version"]),
    ];
    let versions = versions.iter().map(|(_, version)| version.clone());
    let fixed: Vec<_> =
        before.into_iter().chain(versions).chain([load()]).map(|field| field.replace(',', " ")).collect();
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

/// The date, the commit and the processor, as fields of a CSV file.
#[must_use]
pub fn when_and_where() -> [String; 3] {
    let commit = said("git", &["describe", "--always", "--dirty", "--exclude=*"]);
    [said("date", &["-u", "+%FT%TZ"]), commit, cpu()].map(|field| field.replace(',', " "))
}

/// What a program prints; nothing where there is no such program.
#[must_use]
pub fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    output.map_or_else(|_| String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The processor's name and model. Linux only; empty elsewhere.
#[must_use]
pub fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split(':').nth(1)).unwrap_or_default().trim().to_owned()
    };
    let (name, family, model) = (field("model name"), field("cpu family"), field("model\t"));
    format!("{name} family {family} model {model}")
}

/// The load average of the last minute, this program's own included.
pub(crate) fn load() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().unwrap_or_default().to_owned()
}

/// A package and its version in the lock file.
#[must_use]
pub fn locked(package: &str) -> Version<'_> {
    let mut lines = include_str!("../../Cargo.lock").lines();
    lines.find(|line| *line == format!("name = \"{package}\""));
    let version = lines.next().and_then(|line| line.split('"').nth(1));
    (package, version.unwrap_or_default().to_owned())
}
