//! [`Answers`]: what the model says to one request, as it comes.
//!
//! Whatever may take long and does not wait (judging, turning text into tokens) runs where it holds up no other request: a call begins on a
//! thread for such work; an answer whose output is judged is read with the runtime told of it. Nothing is read ahead of the client:
//! what it does not take yet waits in the engine, no more than an answer, while the engine goes on. Dropping this ends the answers,
//! frees their slots and places, whichever way the request has ended.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll};

use llama_core::{BatchStream, FinishReason, StreamEvent, Usage};
use tokio::sync::OwnedSemaphorePermit;

use crate::app::App;
use crate::call;
use crate::error::ApiError;
use crate::metrics::{Outcome, Underway};
use crate::request::Request;
use crate::token::{Cursor, Token};

/// The answers to a request.
pub(crate) struct Answers {
    app: Arc<App>,
    stream: BatchStream,
    rows: Vec<Row>,
    /// Whether tokens are told beside their text.
    logprobs: bool,
    /// What was read and not yet told.
    held: Option<(usize, Delta)>,
    /// What ends all answers once that is told.
    failure: Option<ApiError>,
    /// Answers to each prompt.
    n: usize,
    usage: TotalUsage,
    underway: Underway,
    // Dropped behind the stream: a place is free when its slot is.
    _places: OwnedSemaphorePermit,
}

/// One of the answers.
#[derive(Debug)]
struct Row {
    cursor: Cursor,
    /// Whether its next text is its prompt.
    is_echo: bool,
    has_text: bool,
    end: Option<FinishReason>,
}

/// More of an answer; the whole of it, where it is waited for.
#[derive(Debug, Default)]
pub(crate) struct Delta {
    pub(crate) text: String,
    pub(crate) tokens: Vec<Token>,
    /// OpenAI's word for why it ended, once it has.
    pub(crate) finish_reason: Option<&'static str>,
}

/// What a request cost; a prompt that is answered n times counts once.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TotalUsage {
    pub(crate) prompt_tokens: usize,
    pub(crate) cached_tokens: usize,
    pub(crate) completion_tokens: usize,
}

/// More of one of the answers, and which one.
type Told = Result<(usize, Delta), ApiError>;

impl Answers {
    /// Hands the request to the model.
    pub(crate) async fn begin(
        app: &Arc<App>,
        request: Request,
        places: OwnedSemaphorePermit,
        mut underway: Underway,
    ) -> Result<Self, ApiError> {
        let (n, logprobs) = (request.n, request.options.logprobs);
        let echoes = request.echoes(app.llama.tokenizer());
        let rows = echoes.iter().flat_map(|is_echo| std::iter::repeat_n(*is_echo, n));
        let rows = rows.map(|is_echo| Row::new(request.options.echo, is_echo)).collect();
        let (stream, places) = match call::submit(app, request, places).await {
            Ok(submitted) => submitted,
            Err(error) => {
                underway.ended(error.outcome());
                return Err(error);
            }
        };
        let (held, failure, usage) = (None, None, TotalUsage::default());
        let app = Arc::clone(app);
        Ok(Self { app, stream, rows, logprobs, held, failure, n, usage, underway, _places: places })
    }

    /// More of one of the answers: all that is there of it. `None` after the last, and after an error nothing.
    pub(crate) fn poll_next(&mut self, context: &Context<'_>) -> Poll<Option<Told>> {
        loop {
            if let Some(error) = self.failure.take_if(|_| self.held.is_none()) {
                self.underway.ended(error.outcome());
                return Poll::Ready(Some(Err(error)));
            }
            // What was said before a failure is told before it, and nothing behind it is read.
            let has_failed = self.failure.is_some();
            let event = if has_failed { Poll::Ready(None) } else { self.poll_event(context) };
            let (row, event) = match event {
                Poll::Ready(Some(Ok(event))) => event,
                Poll::Ready(Some(Err(error))) => {
                    self.failure = Some(error);
                    continue;
                }
                Poll::Pending | Poll::Ready(None) if self.held.is_some() => {
                    return Poll::Ready(self.held.take().map(Ok));
                }
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            };
            let before = self.held.take_if(|(held, delta)| *held != row || delta.finish_reason.is_some());
            self.take(row, event);
            if let Some(before) = before {
                return Poll::Ready(Some(Ok(before)));
            }
        }
    }

    /// Waits for all answers.
    pub(crate) async fn wait(mut self) -> Result<(Vec<Delta>, TotalUsage), ApiError> {
        let mut answers: Vec<Delta> = self.rows.iter().map(|_| Delta::default()).collect();
        while let Some(next) = std::future::poll_fn(|context| self.poll_next(context)).await {
            let (row, delta) = next?;
            let answer = &mut answers[row]; // a row of the call
            answer.text.push_str(&delta.text);
            answer.tokens.extend(delta.tokens);
            answer.finish_reason = delta.finish_reason;
        }
        Ok((answers, self.usage))
    }

    pub(crate) fn usage(&self) -> TotalUsage {
        self.usage
    }

    pub(crate) fn n_rows(&self) -> usize {
        self.rows.len()
    }

    fn poll_event(&mut self, context: &Context<'_>) -> Poll<Option<Result<(usize, StreamEvent), ApiError>>> {
        let stream = &mut self.stream;
        // A guard may panic: this is then the one answer that fails.
        let mut poll = || catch_unwind(AssertUnwindSafe(|| stream.poll_next(context)));
        let polled = if self.app.is_guarded { tokio::task::block_in_place(poll) } else { poll() };
        match polled {
            Ok(event) => {
                event.map(|event| event.map(|event| event.map_err(|error| ApiError::internal(&error))))
            }
            Err(_) => Poll::Ready(Some(Err(ApiError::internal(&"a guard panicked")))),
        }
    }

    /// Adds an event to what is held.
    fn take(&mut self, place: usize, event: StreamEvent) {
        let row = &mut self.rows[place]; // a row of the call
        let (_, delta) = self.held.get_or_insert_with(|| (place, Delta::default()));
        match event {
            StreamEvent::Text(text) => {
                row.has_text = true;
                if !std::mem::take(&mut row.is_echo) {
                    self.underway.has_text();
                }
                row.cursor.text(&text);
                delta.text.push_str(&text);
            }
            StreamEvent::Token(token) if self.logprobs => {
                delta.tokens.push(row.cursor.token(self.app.llama.tokenizer(), token));
            }
            StreamEvent::Finished { finish_reason, usage, metrics, .. } => {
                row.end = Some(finish_reason);
                self.count(place, usage, metrics.cached_tokens);
                match (self.finished(finish_reason), &mut self.held) {
                    (Ok(reason), Some((_, delta))) => delta.finish_reason = Some(reason),
                    (Err(error), _) => self.failure = Some(error),
                    (Ok(_), None) => {} // held above
                }
            }
            _ => {}
        }
    }

    fn count(&mut self, place: usize, usage: Usage, cached_tokens: usize) {
        self.usage.completion_tokens += usage.completion_tokens;
        if place.is_multiple_of(self.n) {
            self.usage.prompt_tokens += usage.prompt_tokens;
            self.usage.cached_tokens += cached_tokens;
        }
    }

    /// OpenAI's word for an answer's end, where it is not an error that the client should hear of.
    fn finished(&mut self, reason: FinishReason) -> Result<&'static str, ApiError> {
        let ended_by = |row: &Row, reason| row.end == Some(reason);
        let has_text = self.rows.iter().any(|row| row.has_text);
        if reason == FinishReason::Cancelled {
            return Err(ApiError::shutting_down());
        }
        if !has_text && self.rows.iter().all(|row| ended_by(row, FinishReason::Deadline)) {
            return Err(ApiError::out_of_time());
        }
        if self.rows.iter().all(|row| row.end.is_some()) {
            let is_cut_off = self.rows.iter().any(|row| ended_by(row, FinishReason::Deadline));
            self.underway.ended(if is_cut_off { Outcome::Deadline } else { Outcome::Complete });
        }
        Ok(match reason {
            FinishReason::Stop | FinishReason::StopString => "stop",
            FinishReason::Guarded | FinishReason::Refused => "content_filter",
            _ => "length", // cut off, all of them
        })
    }
}

impl Row {
    fn new(has_echo: bool, is_echo: bool) -> Self {
        Self { cursor: Cursor::new(has_echo), is_echo, has_text: false, end: None }
    }
}

impl std::fmt::Debug for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answers").field("rows", &self.rows.len()).finish_non_exhaustive()
    }
}
