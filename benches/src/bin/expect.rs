//! What ranks on several hosts can be expected to reach, as Markdown: the record of `ranks`, the model fitted to it with its errors, and what the
//! model says of 13B and 70B on links and memories that are not here. `expect benches/record/ranks.csv`.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use benches::Error;
use benches::network::{self, Link, Step};
use benches::random_model::{FileType, Shape};
use clap::Parser;

/// Predicts answers and prompts on several hosts from a record of ranks.
#[derive(Debug, Parser)]
struct Args {
    /// The record of `ranks`
    record: PathBuf,
    /// The type of predicted weights
    #[arg(long = "type", default_value = "q4_0")]
    file_type: FileType,
    /// The latency of predicted links, in microseconds
    #[arg(long, default_value_t = 30.0)]
    latency: f64,
    /// How much of a host's memory bandwidth an answer uses
    #[arg(long, default_value_t = 0.6)]
    share: f64,
    /// What a host computes in a prompt, in GFLOP/s
    #[arg(long, default_value_t = 4000.0)]
    gflops: f64,
}

/// Predicted rates of links, in Gbit/s.
const RATES: [f64; 4] = [1.0, 10.0, 25.0, 100.0];
/// Memory bandwidths of a host, in GB/s: two channels of DDR5, eight of DDR4, twelve of DDR5.
const MEMORIES: [f64; 3] = [60.0, 200.0, 400.0];
/// The tokens of a prompt that is one step.
const PROMPT: usize = 512;

fn main() -> ExitCode {
    benches::end(run(Args::parse()))
}

fn run(args: Args) -> Result<(), Error> {
    let steps = network::steps(&fs::read_to_string(&args.record)?)?;
    let mut text = String::new();
    measured(&steps, &mut text)?;
    predicted(&args, &mut text)?;
    io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// Each model and phase: what was fitted, and each link's measured and modelled time.
fn measured(steps: &[Step], text: &mut String) -> Result<(), Error> {
    let mut groups: Vec<(&str, &str, usize)> = Vec::new();
    for step in steps {
        let group = (&step.model[..], &step.phase[..], step.ranks);
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    writeln!(
        text,
        "| model, step | link | latency µs | Gbit/s | exchanges | kB | measured ms | model ms | error |"
    )?;
    writeln!(text, "|---|---|---|---|---|---|---|---|---|")?;
    let mut errors = Vec::new();
    for (model, phase, ranks) in groups {
        let of_group = |step: &&Step| (&step.model[..], &step.phase[..], step.ranks) == (model, phase, ranks);
        let group: Vec<&Step> = steps.iter().filter(of_group).collect();
        if group.len() < 2 {
            continue; // one point fits any model
        }
        let compute = network::fit(&group);
        for step in &group {
            let Link { name, latency, bandwidth } = &step.link;
            let traffic = network::step_traffic(&step.config, step.tokens, ranks);
            let modelled = compute + step.sent();
            let error = modelled / step.seconds - 1.0;
            errors.push(error.abs());
            writeln!(
                text,
                "| {model}, {phase} of {} on {ranks} | {name} | {:.0} | {:.1} | {} | {:.0} | {:.1} | {:.1} | {:+.1} % |",
                step.tokens,
                latency * 1e6,
                bandwidth * 8e-9,
                traffic.exchanges,
                traffic.bytes as f64 / 1e3,
                step.seconds * 1e3,
                modelled * 1e3,
                error * 100.0,
            )?;
        }
        let Some(Step { config, tokens, .. }) = group.first() else { continue };
        let gflops = *tokens as f64 * network::flops(config) / ranks as f64 / compute / 1e9;
        let modelled = compute * 1e3;
        writeln!(
            text,
            "| {model}, {phase} | *computed on each rank, at {gflops:.0} GFLOP/s* | | | | | | {modelled:.1} | |"
        )?;
    }
    errors.sort_unstable_by(f64::total_cmp);
    let mean = errors.iter().sum::<f64>() / errors.len() as f64;
    let most = errors.last().copied().unwrap_or(f64::NAN);
    writeln!(
        text,
        "\nThe model's error: {:.1} % in the mean of {} points, {:.1} % at most.\n",
        mean * 100.0,
        errors.len(),
        most * 100.0
    )?;
    Ok(())
}

/// Tokens a second by hosts, memory and link.
fn predicted(args: &Args, text: &mut String) -> Result<(), Error> {
    let links = RATES.map(|rate| Link {
        name: format!("{rate} GbE"),
        latency: args.latency * 1e-6,
        bandwidth: rate * 1e9 / 8.0,
    });
    let titles: Vec<&str> = links.iter().map(|link| &link.name[..]).collect();
    let titles = titles.join(" | ");
    let shapes = [Shape::Llama13B, Shape::Llama70B];
    writeln!(text, "Predicted tokens a second of an answer, {}, {} µs:\n", args.file_type, args.latency)?;
    writeln!(text, "| model | hosts | memory GB/s | {titles} |\n|---|---|---|---|---|---|---|")?;
    for shape in shapes {
        let config = shape.config();
        for hosts in [2, 4, 8] {
            for memory in MEMORIES {
                let read = network::bytes_read(&config, args.file_type) / hosts as f64;
                let compute = read / (memory * 1e9 * args.share);
                let traffic = network::step_traffic(&config, 1, hosts);
                let rates =
                    links.each_ref().map(|link| format!("{:.1}", 1.0 / (compute + link.seconds(traffic))));
                writeln!(text, "| {} | {hosts} | {memory} | {} |", shape.name(), rates.join(" | "))?;
            }
        }
    }
    writeln!(
        text,
        "\nPredicted tokens a second of a prompt of {PROMPT}, hosts of {} GFLOP/s:\n",
        args.gflops
    )?;
    writeln!(text, "| model | hosts | {titles} |\n|---|---|---|---|---|---|")?;
    for shape in shapes {
        let config = shape.config();
        for hosts in [2, 4, 8] {
            let compute = PROMPT as f64 * network::flops(&config) / hosts as f64 / (args.gflops * 1e9);
            let traffic = network::step_traffic(&config, PROMPT, hosts);
            let rates = links
                .each_ref()
                .map(|link| format!("{:.0}", PROMPT as f64 / (compute + link.seconds(traffic))));
            writeln!(text, "| {} | {hosts} | {} |", shape.name(), rates.join(" | "))?;
        }
    }
    Ok(())
}
