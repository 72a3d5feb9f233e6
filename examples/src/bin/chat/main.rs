//! A chat in the terminal, with the model in the binary or a checkpoint of your own: `cargo run --release`.

mod answer;
mod chat;
mod command;

use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;

use chat::Chat;
use clap::{Parser, ValueEnum};
use examples::{ModelArgs, Outcome, SamplingArgs};
use llama_core::{ChatOptions, ContextOptions, ContextPolicy, SAFETY_SYSTEM_PROMPT, Summarizer};

/// Chats with Llama 2: type a message a line; /help lists the commands, Ctrl-C stops an answer, Ctrl-D ends. Without a checkpoint, the
/// built-in tiny-chat answers.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Tokens that are sent and answered at a time
    #[arg(long = "max_seq_len", default_value_t = 512)]
    max_seq_len: usize,
    /// Tokens of an answer at most [default: as many as fit]
    #[arg(long = "max_gen_len")]
    max_gen_len: Option<usize>,
    /// What to do when the conversation outgrows max_seq_len
    #[arg(long, value_enum, default_value = "drop")]
    context: Context,
    /// System prompt
    #[arg(long, conflicts_with = "safe")]
    system: Option<String>,
    /// Use the system prompt with which the reference's makers ask for safe answers
    #[arg(long)]
    safe: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Context {
    /// Refuse the message
    Reject,
    /// Send the newest turns alone
    Drop,
    /// Let the model summarise the oldest turns
    Summarize,
}

fn main() -> ExitCode {
    examples::run(|| chat(&Args::parse()))
}

fn chat(args: &Args) -> Outcome {
    let llama = args.model.load(args.max_seq_len, 1)?;
    let options = ChatOptions {
        temperature: args.sampling.temperature,
        top_p: args.sampling.top_p,
        max_gen_len: args.max_gen_len,
        ..Default::default()
    };
    let policy = match args.context {
        Context::Reject => ContextPolicy::Reject,
        Context::Drop => ContextPolicy::DropOldestTurns,
        Context::Summarize => ContextPolicy::Summarize(Summarizer::model()),
    };
    let system = args.system.as_deref().or(args.safe.then_some(SAFETY_SYSTEM_PROMPT));
    let mut chat = Chat::new(llama, system, options, ContextOptions { policy, reserve: None });
    let at_terminal = io::stdin().is_terminal();
    if at_terminal {
        answer::stop_on_ctrl_c()?;
        let model = if args.model.ckpt_dir.is_some() { "Llama 2" } else { "tiny-chat, a very small Llama 2" };
        writeln!(io::stdout(), "Chat with {model}. /help lists the commands; Ctrl-D ends.\n")?;
    }
    while let Some(line) = read_line(at_terminal)? {
        if !line.trim().is_empty() && !chat.line(&line)? {
            return Ok(());
        }
    }
    if at_terminal {
        writeln!(io::stdout())?;
    }
    Ok(())
}

/// A line, gone on with by the next where it ends in a backslash; `None` at the end.
fn read_line(at_terminal: bool) -> io::Result<Option<String>> {
    let mut text = String::new();
    loop {
        if at_terminal {
            write!(io::stdout(), "{}", if text.is_empty() { answer::PROMPT } else { "… " })?;
            io::stdout().flush()?;
        }
        let mut line = Vec::new();
        if io::stdin().lock().read_until(b'\n', &mut line)? == 0 {
            return Ok((!text.is_empty()).then_some(text));
        }
        if answer::was_discarded() {
            text.clear();
        }
        // What is no UTF-8 shows as such in the message.
        text.push_str(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']));
        match text.strip_suffix('\\') {
            Some(begun) => text = format!("{begun}\n"),
            None => return Ok(Some(text)),
        }
    }
}
