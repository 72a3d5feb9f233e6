//! [`Events`]: a response that streams its answers as server-sent events.
//!
//! It is a body that is asked for its next piece when the connection has room for it: who reads slowly is sent fewer and larger pieces, and
//! no more of them than one lies in memory. While there is nothing to send (a long prompt, a queue), a comment keeps the connection from looking dead.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame};
use serde_json::Value;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use crate::answer::Answers;
use crate::format::Format;
use crate::request::Streaming;

pub(crate) struct Events {
    format: Format,
    streaming: Streaming,
    /// `None` after the last.
    answers: Option<Answers>,
    ready: VecDeque<Bytes>,
    silence: Interval,
}

impl Events {
    pub(crate) fn new(format: Format, streaming: Streaming, answers: Answers, keep_alive: Duration) -> Self {
        let mut silence = interval_at(Instant::now() + keep_alive, keep_alive);
        silence.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let opening: Vec<Value> = (0..answers.n_rows()).filter_map(|index| format.opening(index)).collect();
        let mut events = Self { streaming, answers: None, ready: VecDeque::new(), silence, format };
        opening.into_iter().for_each(|chunk| events.push(chunk));
        events.answers = Some(answers);
        events
    }

    fn push(&mut self, mut chunk: Value) {
        if self.streaming.include_usage && chunk.get("usage").is_none() {
            chunk["usage"] = Value::Null;
        }
        self.ready.push_back(format!("data: {chunk}\n\n").into());
    }

    /// Reads on; whether there is something to send or nothing more will be.
    fn read(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(answers) = &mut self.answers else { return Poll::Ready(()) };
        match answers.poll_next(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Ok((row, delta)))) => {
                for chunk in self.format.chunks(row, &delta) {
                    self.push(chunk);
                }
            }
            Poll::Ready(Some(Err(error))) => {
                self.ready.push_back(format!("data: {}\n\n", error.body()).into());
                self.answers = None;
            }
            Poll::Ready(None) => {
                let usage = self.format.usage(answers.usage());
                if self.streaming.include_usage {
                    self.push(usage);
                }
                self.ready.push_back("data: [DONE]\n\n".into());
                self.answers = None;
            }
        }
        Poll::Ready(())
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let events = self.get_mut();
        loop {
            if let Some(event) = events.ready.pop_front() {
                events.silence.reset();
                return Poll::Ready(Some(Ok(Frame::data(event))));
            }
            if events.answers.is_none() {
                return Poll::Ready(None);
            }
            if events.read(context).is_pending() {
                return events.silence.poll_tick(context).map(|_| {
                    Some(Ok(Frame::data(Bytes::from_static(b": the answer is still to come\n\n"))))
                });
            }
        }
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").field("answers", &self.answers).finish_non_exhaustive()
    }
}
