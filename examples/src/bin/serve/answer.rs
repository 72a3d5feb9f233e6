//! [`Answers`]: what the model says to one request, as it comes.
//!
//! Whatever may take long and does not wait (judging, turning text into tokens) runs where it holds up no other request: a call begins on a
//! thread for such work; an answer whose output is judged is read with the runtime told of it. Nothing is read ahead of the client:
//! what it does not take yet waits in the engine, no more than an answer, while the engine goes on. Dropping this ends the answers,
//! frees their slots and the request's place, whichever way the request has ended.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use llama_core::{BatchStream, FinishReason, Judgement, StreamEvent, Usage};
use tokio::sync::OwnedSemaphorePermit;

use crate::app::App;
use crate::call;
use crate::error::ApiError;
use crate::request::Request;
use crate::token::{Offsets, Token};

/// The answers to a request.
pub(crate) struct Answers {
    app: Arc<App>,
    stream: BatchStream,
    offsets: Vec<Offsets>,
    /// What was read and not yet told.
    held: Option<(usize, Delta)>,
    /// Answers to each prompt.
    n: usize,
    unfinished: usize,
    usage: TotalUsage,
    arrived: Instant,
    told: bool,
    _place: OwnedSemaphorePermit,
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

impl Answers {
    /// Hands the request to the model.
    pub(crate) async fn begin(
        app: &Arc<App>,
        request: Request,
        arrived: Instant,
        place: OwnedSemaphorePermit,
    ) -> Result<Self, ApiError> {
        let (n, n_rows) = (request.n, request.prompts.len().saturating_mul(request.n));
        let stream = call::submit(app, request).await?;
        let offsets = (0..n_rows).map(|_| Offsets::default()).collect();
        Ok(Self {
            app: Arc::clone(app),
            stream,
            offsets,
            held: None,
            n,
            unfinished: n_rows,
            usage: TotalUsage::default(),
            arrived,
            told: false,
            _place: place,
        })
    }

    /// More of one of the answers, and which one: all that is there of it. `None` after the last.
    pub(crate) fn poll_next(
        &mut self,
        context: &Context<'_>,
    ) -> Poll<Option<Result<(usize, Delta), ApiError>>> {
        loop {
            let (row, event) = match self.poll_event(context) {
                Poll::Pending => return self.held.take().map_or(Poll::Pending, |held| self.tell(held)),
                Poll::Ready(None) => match self.held.take() {
                    Some(held) => return self.tell(held),
                    None => return Poll::Ready(None),
                },
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(Some(Ok(event))) => event,
            };
            let before = self.held.take_if(|(held, delta)| *held != row || delta.finish_reason.is_some());
            let (_, delta) = self.held.get_or_insert_with(|| (row, Delta::default()));
            let offsets = &mut self.offsets[row]; // a row of the call
            match event {
                StreamEvent::Text(text) => {
                    offsets.text(&text);
                    delta.text.push_str(&text);
                }
                StreamEvent::Token(token) => {
                    delta.tokens.push(offsets.token(self.app.llama.tokenizer(), token))
                }
                StreamEvent::Finished { finish_reason, judgements, usage, metrics } => {
                    let said_nothing = offsets.is_at_start();
                    delta.finish_reason = match finished(finish_reason, said_nothing) {
                        Ok(reason) => Some(reason),
                        Err(error) => return Poll::Ready(Some(Err(error))),
                    };
                    self.count(row, usage, metrics.cached_tokens, &judgements);
                }
                _ => {}
            }
            if let Some(before) = before {
                return self.tell(before);
            }
        }
    }

    /// Waits for all answers.
    pub(crate) async fn wait(mut self) -> Result<(Vec<Delta>, TotalUsage), ApiError> {
        let mut answers: Vec<Delta> = self.offsets.iter().map(|_| Delta::default()).collect();
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
        self.offsets.len()
    }

    fn tell(&mut self, (row, delta): (usize, Delta)) -> Poll<Option<Result<(usize, Delta), ApiError>>> {
        if !self.told && !delta.text.is_empty() {
            self.told = true;
            self.app.metrics.first_text.observe(self.arrived.elapsed());
        }
        Poll::Ready(Some(Ok((row, delta))))
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

    fn count(&mut self, row: usize, usage: Usage, cached_tokens: usize, judgements: &[Judgement]) {
        self.unfinished -= 1;
        self.usage.completion_tokens += usage.completion_tokens;
        if row.is_multiple_of(self.n) {
            self.usage.prompt_tokens += usage.prompt_tokens;
            self.usage.cached_tokens += cached_tokens;
        }
        self.app.metrics.judged(judgements);
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.app.metrics.answered(self.arrived.elapsed(), self.unfinished == 0);
    }
}

impl std::fmt::Debug for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answers").field("unfinished", &self.unfinished).finish_non_exhaustive()
    }
}

/// OpenAI's word for an end, where it is not an error that the client should hear of.
fn finished(reason: FinishReason, said_nothing: bool) -> Result<&'static str, ApiError> {
    match reason {
        FinishReason::Stop | FinishReason::StopString => Ok("stop"),
        FinishReason::Guarded | FinishReason::Refused => Ok("content_filter"),
        FinishReason::Cancelled => Err(ApiError::shutting_down()),
        FinishReason::Deadline if said_nothing => Err(ApiError::out_of_time()),
        // Cut off, all of them.
        _ => Ok("length"),
    }
}
