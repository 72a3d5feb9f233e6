//! Eight streams at once against one call of eight: tokens a second, measured in turns.
//!
//! Both run in the same forward passes; what is compared is what the streams cost beyond them: threads, channels, text piece by piece. On
//! tiny-chat, by default, where a forward pass is short and that shows most.

use std::io::{self, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use clap::Parser;
use llama_core::{ChatOptions, Dialog, Error, Llama, StreamEvent};

/// Measures eight streams at once against one `chat_completion` of eight.
#[derive(Debug, Parser)]
struct Args {
    /// Checkpoint
    #[arg(long = "ckpt_dir", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-chat"))]
    ckpt_dir: String,
    /// Tokens of each answer
    #[arg(long = "max_gen_len", default_value_t = 400)]
    max_gen_len: usize,
    /// Turns
    #[arg(long, default_value_t = 9)]
    turns: usize,
}

const ROWS: usize = 8;

fn main() -> ExitCode {
    benches::end(measure(&Args::parse()))
}

fn measure(args: &Args) -> Result<(), benches::Error> {
    let llama = Llama::builder().checkpoint(&args.ckpt_dir).max_batch_size(ROWS).build()?;
    let dialogs: Vec<Dialog> = (0..ROWS).map(|i| Dialog::new(format!("Tell me story {i}."))).collect();
    // An answer that ended by itself would leave the others alone: EOS never comes.
    let options = ChatOptions {
        max_gen_len: Some(args.max_gen_len),
        logit_bias: [(llama.tokenizer().eos_id(), -100.0)].into(),
        ..Default::default()
    };
    let (mut calls, mut streams) = (Vec::new(), Vec::new());
    for _ in 0..args.turns.max(1) {
        calls.push(rate(|| {
            let answers = llama.chat_completion(&dialogs, &options)?;
            Ok(answers.iter().map(|answer| answer.usage.completion_tokens).sum())
        })?);
        streams.push(rate(|| at_once(&llama, &dialogs, &options))?);
    }
    let (call, stream) = (median(calls), median(streams));
    let _ = writeln!(
        io::stdout(),
        "one call of {ROWS}: {call:.0} tokens a second; {ROWS} streams: {stream:.0}, {:.1} %",
        stream / call * 100.0
    );
    Ok(())
}

fn at_once(llama: &Llama, dialogs: &[Dialog], options: &ChatOptions) -> Result<usize, Error> {
    thread::scope(|scope| {
        let stream = |dialog| {
            scope.spawn(move || {
                let mut n_tokens = 0;
                for event in llama.chat_stream(dialog, options)? {
                    n_tokens += usize::from(matches!(event?, StreamEvent::Token(_)));
                }
                Ok::<_, Error>(n_tokens)
            })
        };
        let streams: Vec<_> = dialogs.iter().map(stream).collect();
        // A thread that panicked has said so; its tokens are missing.
        streams.into_iter().map(|stream| stream.join().unwrap_or(Ok(0))).sum()
    })
}

/// Tokens a second.
fn rate(work: impl FnOnce() -> Result<usize, Error>) -> Result<f64, Error> {
    let started = Instant::now();
    let n_tokens = work()?;
    Ok(n_tokens as f64 / started.elapsed().as_secs_f64())
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2] // one turn at least
}
