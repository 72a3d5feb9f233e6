//! [`ChatStream`]: an answer as it comes; [`BatchStream`]: the answers of one call.

mod answers;
mod judge;
mod release;

use std::task::{Context, Poll};

use llama_backend::TokenId;

pub(crate) use self::answers::{Answer, Answers};
use crate::Error;
use crate::generate::{CancelToken, FinishReason, Metrics, Usage};
use crate::options::TokenChoice;
use crate::safety::Judgement;

/// An answer as it comes: pieces of text, each followed by the tokens that it is made of, then how it ended. The pieces join to exactly what
/// [`chat_completion`](crate::Llama::chat_completion) returns.
///
/// It is a plain iterator that waits for each event; with the feature `futures` it is a `futures_core::Stream` too, and
/// [`poll_next`](Self::poll_next) is there without. Dropping it ends the answer and frees its place in the batch; so does its
/// [`cancel_token`](Self::cancel_token), after which what was said still comes, and a last event with [`FinishReason::Cancelled`].
///
/// Who reads slowly, or not at all, holds up nobody: the model goes on, and what it says is kept until it is read, which is never more than
/// an answer (`max_gen_len`, `max_seq_len` at most).
///
/// The guards of a model ([`Llama::with_guard`](crate::Llama::with_guard)) are asked while the next event is waited for, on the thread that does; so
/// `poll_next` takes as long as they do.
///
/// ```no_run
/// # use llama_core::{ChatOptions, Dialog, Llama};
/// # let llama = Llama::build("llama-2-7b-chat", "tokenizer.model", 512, 8)?;
/// use llama_core::StreamEvent;
///
/// for event in llama.chat_stream(&Dialog::new("Tell me a story."), &ChatOptions::default())? {
///     match event? {
///         StreamEvent::Text(text) => print!("{text}"),
///         StreamEvent::Finished { finish_reason, .. } => println!("\n({finish_reason:?})"),
///         _ => {}
///     }
/// }
/// # Ok::<(), llama_core::Error>(())
/// ```
#[derive(Debug)]
pub struct ChatStream {
    batch: BatchStream,
}

/// A text as it is continued: the same as an answer as it comes.
pub type TextStream = ChatStream;

/// What happens in a stream.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum StreamEvent {
    /// More of the answer's text: whole characters, of whole tokens.
    Text(String),
    /// A token of the text before it.
    Token(StreamToken),
    /// The answer is complete; nothing follows.
    Finished {
        /// Why it ended.
        finish_reason: FinishReason,
        /// What guards have refused or replaced, in its prompt and in itself. Under [`FinishReason::Guarded`] the last of them says why.
        judgements: Vec<Judgement>,
        /// The tokens that it cost.
        usage: Usage,
        /// How long it took.
        metrics: Metrics,
    },
}

/// A token of an answer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct StreamToken {
    /// Its id.
    pub id: TokenId,
    /// Its text alone.
    pub text: String,
    /// log p of the token under the model, when `logprobs` were asked for; `None` for the first token of an echoed prompt too, which stands behind nothing.
    pub logprob: Option<f32>,
    /// The likeliest tokens at its place, likeliest first, when `top_logprobs` were asked for.
    pub top_logprobs: Vec<TokenChoice>,
}

/// The answers of one call as they come: every event with the place, in the call, of the dialog or prompt that it answers. In all else it is as
/// [`ChatStream`], which is one of a single answer. The call is let in as a whole, its prompts run in the same forward passes, and the same
/// prompt n times is answered n times, each from a random stream of its own; where they stand side by side, guards judge it once.
///
/// ```no_run
/// # use llama_core::{ChatOptions, Dialog, Llama};
/// # let llama = Llama::build("llama-2-7b-chat", "tokenizer.model", 512, 8)?;
/// use llama_core::StreamEvent;
///
/// let mut texts = [String::new(), String::new()];
/// let dialogs = [Dialog::new("Tell me a story."), Dialog::new("Tell me another.")];
/// for event in llama.chat_streams(&dialogs, &ChatOptions::default())? {
///     if let (place, StreamEvent::Text(text)) = event? {
///         texts[place].push_str(&text);
///     }
/// }
/// # Ok::<(), llama_core::Error>(())
/// ```
#[derive(Debug)]
pub struct BatchStream {
    answers: Answers,
    cancel: CancelToken,
}

/// A prompt of a call that was refused before it began ([`BatchStream::refused`]).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RefusedPrompt {
    /// Its place in the call.
    pub place: usize,
    /// Whether it holds a special tag ([`FinishReason::Refused`]) or a guard refused it ([`FinishReason::Guarded`]).
    pub finish_reason: FinishReason,
    /// What guards have found in it.
    pub judgements: Vec<Judgement>,
}

impl ChatStream {
    /// A call with one row.
    pub(crate) fn new(batch: BatchStream) -> Self {
        Self { batch }
    }

    /// The last message of the dialog where it is not to be kept as it was given.
    pub(crate) fn message(&self) -> Option<&str> {
        self.batch.answers.message(0)
    }

    /// Ends the answer from anywhere: the token of the options, or one of this stream's own.
    #[must_use]
    pub fn cancel_token(&self) -> CancelToken {
        self.batch.cancel_token()
    }

    /// The next event; where there is none yet, the context's waker is woken when there is.
    pub fn poll_next(&mut self, context: &Context<'_>) -> Poll<Option<Result<StreamEvent, Error>>> {
        self.batch.poll_next(context).map(|event| event.map(|event| event.map(|(_, event)| event)))
    }
}

impl BatchStream {
    pub(crate) fn new(answers: Answers, cancel: CancelToken) -> Self {
        Self { answers, cancel }
    }

    /// Ends the answers from anywhere: the token of the options, or one of this stream's own.
    #[must_use]
    pub fn cancel_token(&self) -> CancelToken {
        self.cancel.clone()
    }

    /// The first prompt that was refused before it began, known before any event is read.
    #[must_use]
    pub fn refused(&self) -> Option<&RefusedPrompt> {
        self.answers.refused()
    }

    /// The next event; where there is none yet, the context's waker is woken when there is.
    pub fn poll_next(&mut self, context: &Context<'_>) -> Poll<Option<Result<(usize, StreamEvent), Error>>> {
        self.answers.poll_next(context)
    }
}

impl Iterator for ChatStream {
    type Item = Result<StreamEvent, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.batch.next().map(|event| event.map(|(_, event)| event))
    }
}

impl Iterator for BatchStream {
    type Item = Result<(usize, StreamEvent), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.answers.next()
    }
}

#[cfg(feature = "futures")]
impl futures_core::Stream for ChatStream {
    type Item = Result<StreamEvent, Error>;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<<Self as Iterator>::Item>> {
        ChatStream::poll_next(self.get_mut(), context)
    }
}

#[cfg(feature = "futures")]
impl futures_core::Stream for BatchStream {
    type Item = Result<(usize, StreamEvent), Error>;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<<Self as Iterator>::Item>> {
        BatchStream::poll_next(self.get_mut(), context)
    }
}
