//! A chat in the terminal, with the model in the binary or a checkpoint of your own: `cargo run --release`.

use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use examples::{ModelArgs, Outcome, SamplingArgs};
use llama_core::{ChatOptions, Dialog, Llama, SAFETY_SYSTEM_PROMPT, StreamEvent};

/// Chats with Llama 2: type a message a line; Ctrl-D ends. Without a checkpoint, the built-in tiny-chat answers.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Tokens that the conversation may have
    #[arg(long = "max_seq_len", default_value_t = 512)]
    max_seq_len: usize,
    /// Tokens of an answer at most [default: as many as fit]
    #[arg(long = "max_gen_len")]
    max_gen_len: Option<usize>,
    /// System prompt
    #[arg(long, conflicts_with = "safe")]
    system: Option<String>,
    /// Use the system prompt with which the reference's makers ask for safe answers
    #[arg(long)]
    safe: bool,
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
    let system = args.system.as_deref().or(args.safe.then_some(SAFETY_SYSTEM_PROMPT));
    let at_terminal = io::stdin().is_terminal();
    if at_terminal {
        let model = if args.model.ckpt_dir.is_some() { "Llama 2" } else { "tiny-chat, a very small Llama 2" };
        writeln!(io::stdout(), "Chat with {model}. Ctrl-D ends.\n")?;
    }
    // The conversation so far, and the answer to it.
    let mut last: Option<(Dialog, String)> = None;
    let mut lines = io::stdin().lock().lines();
    loop {
        if at_terminal {
            write!(io::stdout(), "> ")?;
            io::stdout().flush()?;
        }
        let Some(line) = lines.next() else { break };
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let opening = || match system {
            Some(system) => Dialog::new(&*line).with_system(system),
            None => Dialog::new(&*line),
        };
        let mut dialog = match last.take() {
            Some((dialog, answer)) => dialog.then(answer, &*line),
            None => opening(),
        };
        let answered = match answer(&llama, &dialog, &options) {
            Err(error) if error.is_context_overflow() && dialog.messages().len() > 2 => {
                writeln!(io::stderr(), "({error}: the conversation starts anew)")?;
                dialog = opening();
                answer(&llama, &dialog, &options)
            }
            answered => answered,
        };
        match answered {
            // A message that was refused would be refused again with all that follows.
            Ok(text) => last = dialog.special_tag().is_none().then_some((dialog, text)),
            Err(error) if error.is_context_overflow() => writeln!(io::stderr(), "({error})")?,
            Err(error) => return Err(error.into()),
        }
    }
    if at_terminal {
        writeln!(io::stdout())?;
    }
    Ok(())
}

/// Prints the answer as it comes, and returns it.
fn answer(llama: &Llama, dialog: &Dialog, options: &ChatOptions) -> Result<String, llama_core::Error> {
    let mut out = io::stdout().lock();
    let mut text = String::new();
    for event in llama.chat_stream(dialog, options)? {
        if let StreamEvent::Text(piece) = event? {
            // A reader that left is noticed where the answer is complete.
            let _ = write!(out, "{piece}").and_then(|()| out.flush());
            text.push_str(&piece);
        }
    }
    let _ = writeln!(out, "\n");
    Ok(text)
}
