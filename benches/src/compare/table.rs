//! Rounds as a table of ratios, and as lines of a CSV file.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use super::{Question, Row, median};
use crate::Error;
use crate::record::{load, when_and_where};

const HEADER: &str = "date,commit,cpu,machine_load,model,threads,test,round,engine,tokens_per_s,share_of_machine,read_gb_per_s,\
                      fma_gflop_per_s,load_s,peak_rss_mb,flash_attn,versions,flags\n";

/// Appends every row to a CSV file, which is made where there is none.
///
/// # Errors
///
/// Where the file cannot be written.
pub fn append(path: &Path, question: &Question, rounds: &[Vec<Row>]) -> Result<(), Error> {
    let mut text = if path.exists() { String::new() } else { HEADER.to_owned() };
    let model = question.model_name.replace(',', " ");
    let before = format!("{},{},{model}", when_and_where().join(","), load());
    let number = |x: Option<f64>| x.map_or_else(String::new, |x| format!("{x:.4}"));
    for (i, round) in rounds.iter().enumerate() {
        for row in round {
            let flags = match &row.system_info {
                Some(info) => in_use(info),
                None => format!("rustflags={}", option_env!("RUSTFLAGS").unwrap_or_default()),
            };
            let after = [
                row.n_threads.to_string(),
                row.test.clone(),
                i.to_string(),
                row.engine.clone(),
                number(Some(row.median_ts)),
                number(row.share_of_machine),
                number(row.read_bytes_per_s.map(|x| x / 1e9)),
                number(row.fma_flops_per_s.map(|x| x / 1e9)),
                number(Some(row.load_s)),
                number(row.peak_rss_bytes.map(|bytes| bytes as f64 / 1e6)),
                row.flash_attn.map_or_else(String::new, |on| on.to_string()),
                row.versions.clone().unwrap_or_default(),
                flags,
            ];
            let after = after.map(|field| field.replace(',', " ")).join(",");
            writeln!(text, "{before},{after}")?;
        }
    }
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(text.as_bytes())?;
    Ok(())
}

/// The names of what llama.cpp says that it uses.
fn in_use(info: &str) -> String {
    let names = info.split([':', '|']).filter_map(|part| part.trim().strip_suffix("= 1"));
    names.map(str::trim).collect::<Vec<_>>().join(" ")
}

/// Medians, and ours over each of the others.
#[must_use]
pub fn markdown(question: &Question, ours: &str, rounds: &[Vec<Row>]) -> String {
    let rows: Vec<&Row> = rounds.iter().flatten().collect();
    let distinct = |of: &dyn Fn(&Row) -> String| {
        let mut values: Vec<String> = Vec::new();
        for value in rows.iter().map(|row| of(row)) {
            if !values.contains(&value) {
                values.push(value);
            }
        }
        values
    };
    let mut out = format!(
        "\n{}, {} threads, medians of {} rounds\n\n| test | engine | t/s | {ours} is | of the machine | load | peak memory |\n|---|---|---|---|---|---|---|\n",
        question.model_name,
        question.threads,
        rounds.len()
    );
    for test in distinct(&|row| row.test.clone()) {
        let of = |engine: &str, value: &dyn Fn(&Row) -> Option<f64>| {
            let rows = rows.iter().filter(|row| row.test == test && row.engine == engine);
            median(rows.filter_map(|row| value(row)))
        };
        let rate = |engine: &str| of(engine, &|row| Some(row.median_ts));
        for engine in distinct(&|row| row.engine.clone()) {
            let Some(found) = rate(&engine) else { continue };
            let ratio = match rate(ours) {
                Some(our) if engine != ours => format!("{:.2} ×", our / found),
                _ => String::new(),
            };
            let share = of(&engine, &|row| row.share_of_machine);
            let load = of(&engine, &|row| Some(row.load_s)).unwrap_or_default();
            let peak = of(&engine, &|row| row.peak_rss_bytes.map(|bytes| bytes as f64));
            let share = share.map_or_else(String::new, |share| format!("{:.0} %", 100.0 * share));
            let peak = peak.map_or_else(String::new, |peak| format!("{:.0} MB", peak / 1e6));
            let _ = writeln!(
                out,
                "| {test} | {engine} | {found:.2} | {ratio} | {share} | {load:.2} s | {peak} |"
            ); // a String takes everything
        }
    }
    out
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::compare) fn row(engine: &str, test: &str, rate: f64) -> Row {
        Row {
            engine: engine.to_owned(),
            test: test.to_owned(),
            n_threads: 2,
            n_prompt: if test.starts_with("pp") { 512 } else { 0 },
            median_ts: rate,
            load_s: 1.0,
            peak_rss_bytes: Some(1_000_000),
            share_of_machine: None,
            read_bytes_per_s: None,
            fma_flops_per_s: None,
            flash_attn: Some(true),
            versions: None,
            system_info: Some("CPU : AVX2 = 1 | FMA = 1 | SVE = 0 |".to_owned()),
        }
    }

    fn question() -> Question {
        Question {
            model: "a.gguf".into(),
            model_name: "tinyllama q4_0".to_owned(),
            n_prompt: 512,
            n_gen: 64,
            batch: 1,
            depth: 0,
            threads: 2,
        }
    }

    #[test]
    fn ratios_are_of_medians() {
        let rounds = [(10.0, 5.0), (30.0, 10.0), (1.0, 90.0)]
            .map(|(ours, theirs)| vec![row("ours", "pp512", ours), row("theirs", "pp512", theirs)]);
        let table = markdown(&question(), "ours", &rounds);
        assert!(table.contains("| pp512 | ours | 10.00 |  |"), "{table}");
        assert!(table.contains("| pp512 | theirs | 10.00 | 1.00 × |"), "{table}");
    }

    #[test]
    fn a_record_has_a_column_for_everything() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record.csv");
        let rounds = vec![vec![row("theirs", "pp512", 10.0)]];
        append(&path, &question(), &rounds).unwrap();
        append(&path, &question(), &rounds).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        let columns = |line: &str| line.split(',').count();
        assert_eq!(columns(lines[0]), columns(lines[1]), "{text}");
        assert!(lines[1].ends_with(",AVX2 FMA"), "{text}");
    }
}
