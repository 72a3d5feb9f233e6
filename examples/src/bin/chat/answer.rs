//! An answer as it is printed, and Ctrl-C, which stops it and not the program.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use examples::Outcome;
use llama_core::{CancelToken, FinishReason, LeftOutReason, Session, StreamEvent};

pub(crate) const PROMPT: &str = "> ";

/// What Ctrl-C would hit.
static STATE: AtomicU8 = AtomicU8::new(PROMPTING);
const PROMPTING: u8 = 0;
const ANSWERING: u8 = 1;
const STOPPING: u8 = 2;
/// Ends the answer under way.
static CANCEL: Mutex<Option<CancelToken>> = Mutex::new(None);

/// Ctrl-C stops an answer, at the prompt says how to leave, and ends a program whose answer does not stop.
pub(crate) fn stop_on_ctrl_c() -> Outcome {
    ctrlc::set_handler(|| {
        match STATE.compare_exchange(ANSWERING, STOPPING, Ordering::Relaxed, Ordering::Relaxed) {
            Err(STOPPING) => std::process::exit(130), // as a shell says of a program that was interrupted
            Err(_) => {
                // The terminal has thrown away what was typed.
                let mut out = io::stdout();
                let _ = write!(out, "\n(Ctrl-D or /quit ends)\n{PROMPT}").and_then(|()| out.flush());
            }
            Ok(_) => {
                if let Some(cancel) = cancel().as_ref() {
                    cancel.cancel();
                }
            }
        }
    })?;
    Ok(())
}

fn cancel() -> MutexGuard<'static, Option<CancelToken>> {
    // A token is put there in one step.
    CANCEL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says something, and prints the answer as it comes.
pub(crate) fn answer(session: &mut Session, message: &str) -> Result<(), llama_core::Error> {
    STATE.store(ANSWERING, Ordering::Relaxed);
    let answered = stream(session, message);
    STATE.store(PROMPTING, Ordering::Relaxed);
    let finished = answered?;
    let note = match finished {
        Some(FinishReason::Cancelled) if session.keep() => {
            "stopped: the answer is kept as far as it came, /undo takes it back"
        }
        Some(FinishReason::Cancelled) => "stopped before it began: the message is forgotten",
        Some(FinishReason::Length) => "cut off: --max_gen_len allows no more",
        Some(FinishReason::Context) => "cut off: the context is full",
        _ if session.left_out().is_some_and(|left| left.reason == LeftOutReason::SpecialTag) => {
            "the answer holds a tag of the chat format: it cannot be a part of the conversation"
        }
        _ => return Ok(()),
    };
    let _ = writeln!(io::stderr(), "({note})\n");
    Ok(())
}

/// Why the answer ended.
fn stream(session: &mut Session, message: &str) -> Result<Option<FinishReason>, llama_core::Error> {
    let stream = session.send(message)?;
    *cancel() = Some(stream.cancel_token());
    if STATE.load(Ordering::Relaxed) == STOPPING {
        stream.cancel_token().cancel(); // while the turns before it were summed up
    }
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
