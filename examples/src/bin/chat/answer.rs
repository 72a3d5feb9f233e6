//! An answer as it is printed, and Ctrl-C, which stops it and not the program.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use examples::Outcome;
use llama_core::{CancelToken, FinishReason, LeftOutReason, Session, StreamEvent};

pub(crate) const PROMPT: &str = "> ";

/// Ends the answer under way; `None` at the prompt.
static CANCEL: Mutex<Option<CancelToken>> = Mutex::new(None);
/// Whether what was typed at the prompt was thrown away.
static DISCARDED: AtomicBool = AtomicBool::new(false);

fn cancel() -> MutexGuard<'static, Option<CancelToken>> {
    // A token is put there in one step.
    CANCEL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ctrl-C stops an answer, at the prompt says how to leave, and ends a program whose answer does not stop.
pub(crate) fn stop_on_ctrl_c() -> Outcome {
    ctrlc::set_handler(|| match cancel().as_ref() {
        Some(cancel) if cancel.is_cancelled() => std::process::exit(130), // as a shell says of a program that was interrupted
        Some(cancel) => cancel.cancel(),
        None => {
            // The terminal has thrown away what was typed.
            DISCARDED.store(true, Ordering::Relaxed);
            let mut out = io::stdout();
            let _ = write!(out, "\n(Ctrl-D or /quit ends)\n{PROMPT}").and_then(|()| out.flush());
        }
    })?;
    Ok(())
}

/// Whether Ctrl-C has thrown away what was typed since this was asked last.
pub(crate) fn was_discarded() -> bool {
    DISCARDED.swap(false, Ordering::Relaxed)
}

/// Says something, and prints the answer as it comes.
pub(crate) fn answer(session: &mut Session, message: &str) -> Result<(), llama_core::Error> {
    let token = CancelToken::new();
    *cancel() = Some(token.clone());
    session.options_mut().cancel = Some(token);
    let answered = stream(session, message);
    *cancel() = None;
    let finished = answered?;
    let note = match finished {
        _ if session.left_out().is_some_and(|left| left.reason == LeftOutReason::SpecialTag) => {
            "the answer holds a tag of the chat format: it cannot be a part of the conversation"
        }
        Some(FinishReason::Cancelled) if session.keep() => {
            "stopped: the answer is kept as far as it came, /undo takes it back"
        }
        Some(FinishReason::Cancelled) => "stopped before it began: the message is forgotten",
        Some(FinishReason::Length) => "cut off: --max_gen_len allows no more",
        Some(FinishReason::Context) => "cut off: the context is full",
        _ => return Ok(()),
    };
    let _ = writeln!(io::stderr(), "({note})\n");
    Ok(())
}

/// Why the answer ended.
fn stream(session: &mut Session, message: &str) -> Result<Option<FinishReason>, llama_core::Error> {
    let stream = session.send(message)?;
    let context = stream.context();
    if context.newly_dropped > 0 {
        let now = if context.summary.is_some() { "sent as a summary from now on" } else { "no longer sent" };
        let _ = writeln!(io::stderr(), "(the oldest turns, {} so far, are {now})", context.dropped);
    }
    let mut out = io::stdout();
    let mut reason = None;
    for event in stream {
        match event? {
            // A reader that left is noticed where the answer is complete.
            StreamEvent::Text(text) => {
                let _ = write!(out, "{text}").and_then(|()| out.flush());
            }
            StreamEvent::Finished { finish_reason, .. } => reason = Some(finish_reason),
            _ => {}
        }
    }
    let _ = writeln!(out, "\n");
    Ok(reason)
}
