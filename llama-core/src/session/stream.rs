//! [`SessionStream`]: an answer as it comes, which becomes a part of the conversation when it finishes.

use super::{ContextReport, Session, SessionAnswer};
use crate::llama::prediction;
use crate::stream::Answer;
use crate::{CancelToken, ChatStream, Error, Message, StreamEvent};

/// An answer in a session as it comes: the events of [`ChatStream`]. When it has finished, the session has one turn more; a stream that is
/// dropped before leaves its texts in [`Session::left_out`].
#[derive(Debug)]
pub struct SessionStream<'a> {
    session: &'a mut Session,
    stream: ChatStream,
    message: String,
    answer: String,
    context: ContextReport,
    is_over: bool,
}

/// A message and what was answered to it, where they did not become a part of the conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeftOut {
    /// What the user said; empty where a guard refused what was sent.
    pub message: String,
    /// The answer as far as it came.
    pub answer: String,
    /// Why they were left out.
    pub reason: LeftOutReason,
}

/// Why a message and its answer did not become a part of the conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LeftOutReason {
    /// The answer was cancelled, or out of time, or its stream was dropped before it finished.
    Interrupted,
    /// The answer could not be completed.
    Failed,
    /// The message, or the conversation before it, holds a special tag.
    Refused,
    /// The answer spells a special tag: the conversation could not be sent again.
    SpecialTag,
    /// A guard refused what was sent, or the answer.
    Guarded,
}

impl<'a> SessionStream<'a> {
    pub(super) fn new(
        session: &'a mut Session,
        stream: ChatStream,
        message: String,
        context: ContextReport,
    ) -> Self {
        Self { session, stream, message, answer: String::new(), context, is_over: false }
    }

    /// What was sent of the conversation, and what was not.
    #[must_use]
    pub fn context(&self) -> &ContextReport {
        &self.context
    }

    /// Ends the answer from anywhere: as [`ChatStream::cancel_token`].
    #[must_use]
    pub fn cancel_token(&self) -> CancelToken {
        self.stream.cancel_token()
    }

    /// The answer as far as it came.
    #[must_use]
    pub fn answer(&self) -> &str {
        &self.answer
    }

    /// Waits for the whole answer.
    ///
    /// # Errors
    ///
    /// What goes wrong while it is made; [`Session::left_out`] has what came before.
    pub fn wait(mut self) -> Result<SessionAnswer, Error> {
        let mut answer = Answer::begun();
        for event in self.by_ref() {
            answer.take(event?);
        }
        let prediction = prediction(answer, &self.session.options, Message::assistant);
        Ok(SessionAnswer { prediction, context: self.context.clone() })
    }

    /// Ends the exchange, once: what came of it goes to the session.
    fn end(&mut self, to: impl FnOnce(&mut Session, String, String)) {
        if !std::mem::replace(&mut self.is_over, true) {
            to(self.session, std::mem::take(&mut self.message), self.answer.clone());
        }
    }
}

impl Iterator for SessionStream<'_> {
    type Item = Result<StreamEvent, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let event = self.stream.next();
        match &event {
            Some(Ok(StreamEvent::Text(text))) => self.answer.push_str(text),
            Some(Ok(StreamEvent::Finished { finish_reason, .. })) => {
                let reason = *finish_reason;
                self.end(|session, message, answer| session.record(message, answer, reason));
            }
            Some(Err(_)) => self.end(|session, message, answer| {
                session.leave_out(message, answer, LeftOutReason::Failed);
            }),
            Some(Ok(StreamEvent::Token(_))) | None => {}
        }
        event
    }
}

impl Drop for SessionStream<'_> {
    fn drop(&mut self) {
        self.end(|session, message, answer| session.leave_out(message, answer, LeftOutReason::Interrupted));
    }
}
