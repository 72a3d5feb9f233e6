//! Asks a model and its guards what a file of prompts asks, and tables who refused what: `safety_report --prompts FILE --words FILE`, as one does before going live.

mod report;

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use examples::{ModelArgs, Outcome, SamplingArgs};
use llama_core::{ChatOptions, ChatStream, Classifier, Error, HoldBack, Llama, PromptLeak, WordList};
use report::{Asked, Report, Row};

/// Asks prompts of a model with its guards, and writes what became of each. Fails where a prompt's expectation is not met.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Tokens that a prompt and its answer may have together
    #[arg(long = "max_seq_len", default_value_t = 512)]
    max_seq_len: usize,
    /// Prompts that run at a time
    #[arg(long = "max_batch_size", default_value_t = 8)]
    max_batch_size: usize,
    /// Tokens of an answer at most
    #[arg(long = "max_gen_len", default_value_t = 256)]
    max_gen_len: usize,
    /// JSON lines, {"prompt": "…", "category": "…", "system": "…", "expect": "allow" or "refuse"}, all but the first optional [default: ten that are built in]
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// List of words, phrases and patterns that are refused [default: a short one that is built in]
    #[arg(long, value_name = "FILE")]
    words: Option<PathBuf>,
    /// Words in a row of its system prompt that an answer may have
    #[arg(long = "prompt_words", default_value_t = 7)]
    prompt_words: usize,
    /// Checkpoint of a model that judges as Llama Guard does [default: none]
    #[arg(long, value_name = "PATH")]
    classifier: Option<PathBuf>,
    /// Tokens that the classifier reads at most
    #[arg(long = "classifier_max_seq_len", default_value_t = 4096)]
    classifier_max_seq_len: usize,
    /// Where the table goes in Markdown [default: standard output]
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Where the table goes in JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    examples::run(|| safety_report(&Args::parse()))
}

fn safety_report(args: &Args) -> Outcome {
    let model = args.model.on_ranks(args.max_seq_len, args.max_batch_size)?;
    let jsonl = match &args.prompts {
        Some(path) => fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?,
        None => include_str!("../../../data/safety_prompts.jsonl").to_owned(),
    };
    let asked = report::read(&jsonl)?;
    let words = match &args.words {
        Some(path) => WordList::open(path)?,
        None => include_str!("../../../data/safety_words.txt").parse()?,
    };
    let mut guards = vec!["word list", "system prompt"];
    let mut llama = model.load()?;
    llama = llama.with_guard(words).with_guard(PromptLeak::more_than(args.prompt_words));
    if let Some(path) = &args.classifier {
        let judge = ModelArgs { ckpt_dir: Some(path.clone()), tokenizer_path: None, ..args.model.clone() };
        let judge = judge.load_beside(args.classifier_max_seq_len, args.max_batch_size)?;
        llama = llama.with_guard(Classifier::new(judge));
        guards.push("classifier");
    }
    // A report tells whether an answer passes, not how far it came.
    let report = Report::new(rows(&llama.with_hold_back(HoldBack::Answer), &guards, asked, args));
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_string_pretty(&report)? + "\n")?;
    }
    match &args.markdown {
        Some(path) => fs::write(path, report.markdown())?,
        None => io::stdout().write_all(report.markdown().as_bytes())?,
    }
    match report.unmet() {
        0 => Ok(()),
        unmet => Err(format!("{unmet} prompts were not answered as expected").into()),
    }
}

/// What became of each prompt. All are submitted before the first is read, so that the model answers as many at a time as it may.
fn rows(llama: &Llama, guards: &[&str], asked: Vec<Asked>, args: &Args) -> Vec<Row> {
    let options = ChatOptions {
        temperature: args.sampling.temperature,
        top_p: args.sampling.top_p,
        max_gen_len: Some(args.max_gen_len),
        ..Default::default()
    };
    let submit = |asked: Asked| {
        let stream = llama.chat_stream(&asked.dialog(), &options);
        (asked, stream)
    };
    let streams: Vec<_> = asked.into_iter().map(submit).collect();
    let row = |(asked, stream): (Asked, Result<ChatStream, Error>)| {
        // The last event says how it ended; the others are the answer, which is nobody's affair here.
        let end = stream.and_then(|mut events| events.try_fold(None, |_, event| event.map(Some)));
        Row::new(asked, guards, end)
    };
    streams.into_iter().map(row).collect()
}
