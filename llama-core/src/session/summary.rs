//! Who writes the summary of turns that are dropped: the model itself, or the caller.
//!
//! The model is asked in the conversation itself: the turns to be dropped, and then the user asks for a summary. Their KV cache is there
//! already, so that reading them again costs next to nothing, and the summary stands later as the answer to the very question that it
//! was. Where the turns do not fit its context all at once, it reads as many as do, and goes on from its own summary.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use llama_dialog::{Conversation, SpecialTag, Turn};

use super::context::{Reader, least};
use crate::{Dialog, Error, FinishReason};

/// What the user says before a summary.
pub(super) const REQUEST: &str = "Summarize our conversation so far in a few sentences.";

type Closure =
    dyn Fn(&SummaryRequest<'_>) -> Result<String, Box<dyn StdError + Send + Sync>> + Send + Sync + 'static;

/// Who writes summaries, and how long they may be.
///
/// ```
/// use llama_core::{ContextPolicy, Summarizer};
///
/// let by_model = ContextPolicy::Summarize(Summarizer::model().with_max_tokens(100));
/// let by_caller = Summarizer::new(|request| {
///     let asked: Vec<_> = request.turns.iter().map(|turn| turn.user).collect();
///     Ok(format!("{} You asked: {}", request.previous.unwrap_or_default(), asked.join("; ")))
/// });
/// ```
#[derive(Clone)]
pub struct Summarizer {
    /// `None`: the model.
    closure: Option<Arc<Closure>>,
    max_tokens: Option<usize>,
}

/// What a summary is to be made of.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct SummaryRequest<'a> {
    /// The system prompt, which is no part of it.
    pub system: Option<&'a str>,
    /// The summary of the turns before, whose place the new one takes.
    pub previous: Option<&'a str>,
    /// The turns that it has to cover beside.
    pub turns: &'a [Turn<'a>],
    /// The tokens that it may have.
    pub max_tokens: usize,
}

/// Why there is no summary.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SummaryError {
    /// The caller's summariser failed.
    #[error("the summary could not be written: {0}")]
    Failed(Box<dyn StdError + Send + Sync>),
    /// It was cancelled, or out of time.
    #[error("the summary was ended before it was complete ({0:?})")]
    Ended(FinishReason),
    /// It holds a tag of the format, so that it cannot be a part of a prompt.
    #[error("the summary holds the special tag {tag} (at byte {offset})")]
    SpecialTag {
        /// Which tag.
        tag: SpecialTag,
        /// The byte at which it begins.
        offset: usize,
    },
    /// A guard refused what was to be summarised, or the summary.
    #[error("a guard refused the summary")]
    Guarded,
    /// It is longer than it was to be.
    #[error("with its summary the prompt has {prompt} tokens, there is room for {room}")]
    TooLong {
        /// Tokens of the prompt that it would be a part of.
        prompt: usize,
        /// Tokens that a prompt may have beside what is reserved for the answer.
        room: usize,
    },
}

pub(super) fn too_long(prompt: usize, room: usize) -> Error {
    SummaryError::TooLong { prompt, room }.into()
}

impl Summarizer {
    /// The model itself, at temperature 0. [`Session::send`](crate::Session::send) waits while it writes.
    #[must_use]
    pub fn model() -> Self {
        Self { closure: None, max_tokens: None }
    }

    /// A function of the caller's.
    pub fn new(
        write: impl Fn(&SummaryRequest<'_>) -> Result<String, Box<dyn StdError + Send + Sync>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self { closure: Some(Arc::new(write)), max_tokens: None }
    }

    /// The tokens that a summary may have, at least 1 and less than prompts may have: [`Error::Option`] when one is to be written. Default: 256,
    /// and an eighth of the room for prompts at most.
    #[must_use]
    pub fn with_max_tokens(mut self, max_tokens: usize) -> Self {
        self.max_tokens = Some(max_tokens);
        self
    }

    /// The tokens of a summary in this room.
    pub(super) fn max_tokens(&self, room: usize) -> Result<usize, Error> {
        match self.max_tokens {
            None => Ok((room / 8).clamp(1, 256)),
            Some(tokens) if (1..room).contains(&tokens) => Ok(tokens),
            Some(tokens) => {
                let expected =
                    format!("at least 1, and less than the room for prompts, which is {room} tokens");
                Err(Error::option("max_tokens", tokens, expected))
            }
        }
    }
}

impl fmt::Debug for Summarizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = if self.closure.is_some() { "caller" } else { "model" };
        f.debug_struct("Summarizer").field("by", &by).field("max_tokens", &self.max_tokens).finish()
    }
}

/// What came of writing.
pub(super) struct Written {
    pub(super) summary: Option<String>,
    /// Turns that were too long to be read, or of which nothing was said.
    pub(super) unread: usize,
}

pub(super) struct Writer<'a, R> {
    pub(super) reader: &'a R,
    pub(super) system: Option<&'a str>,
    pub(super) max_tokens: usize,
}

impl<R: Reader> Writer<'_, R> {
    /// A summary of the one before and of these turns; none where nothing was written.
    pub(super) fn write(
        &self,
        by: &Summarizer,
        previous: Option<&str>,
        turns: &[Turn<'_>],
    ) -> Result<Written, Error> {
        let Some(closure) = &by.closure else {
            return self.ask_model(previous, turns);
        };
        let request = SummaryRequest { system: self.system, previous, turns, max_tokens: self.max_tokens };
        Ok(Written { summary: usable(closure(&request).map_err(SummaryError::Failed)?)?, unread: 0 })
    }

    fn ask_model(&self, previous: Option<&str>, turns: &[Turn<'_>]) -> Result<Written, Error> {
        let mut written = Written { summary: previous.map(str::to_owned), unread: 0 };
        let mut rest = turns;
        while !rest.is_empty() {
            let dialog = |n: usize| self.question(written.summary.as_deref(), &rest[..n]);
            let too_many = |n: usize| {
                let tokens = self.reader.count(&dialog(n))?;
                Ok(tokens.saturating_add(self.max_tokens) > self.reader.limit())
            };
            // As many as it can read.
            let n = least(1, rest.len(), too_many)?.map_or(rest.len(), |n| n - 1);
            if n == 0 {
                written.unread += 1;
                rest = &rest[1..];
                continue;
            }
            match usable(self.reader.answer(&dialog(n), self.max_tokens)?)? {
                Some(summary) => written.summary = Some(summary),
                // It had nothing to say of them: what was said of those before stays.
                None => written.unread += n,
            }
            rest = &rest[n..];
        }
        Ok(written)
    }

    fn question(&self, summary: Option<&str>, turns: &[Turn<'_>]) -> Dialog {
        let mut read = Conversation::new();
        read.set_system(self.system.map(str::to_owned));
        if let Some(summary) = summary {
            read.push_turn(REQUEST, summary);
        }
        for turn in turns {
            read.push_turn(turn.user, turn.answer.unwrap_or_default()); // all turns of a conversation are answered
        }
        read.ask(REQUEST)
    }
}

/// A summary that can be a part of a prompt; `None` for one that says nothing.
fn usable(summary: String) -> Result<Option<String>, SummaryError> {
    if let Some((offset, tag)) = SpecialTag::find(&summary) {
        return Err(SummaryError::SpecialTag { tag, offset });
    }
    Ok((!llama_dialog::strip(&summary).is_empty()).then_some(summary))
}
