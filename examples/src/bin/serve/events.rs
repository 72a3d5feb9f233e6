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
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use crate::answer::Answers;
use crate::format::Format;

pub(crate) struct Events {
    format: Format,
    /// `None` after the last.
    answers: Option<Answers>,
    ready: VecDeque<Bytes>,
    silence: Interval,
}

impl Events {
    pub(crate) fn new(format: Format, answers: Answers, keep_alive: Duration) -> Self {
        let mut silence = interval_at(Instant::now() + keep_alive, keep_alive);
        silence.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ready = (0..answers.n_rows()).filter_map(|index| format.opening(index)).map(event).collect();
        Self { format, answers: Some(answers), ready, silence }
    }

    /// Reads on; whether there is something to send or nothing more will be.
    fn read(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(answers) = &mut self.answers else { return Poll::Ready(()) };
        match answers.poll_next(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Ok((row, delta)))) => {
                self.ready.extend(self.format.chunks(row, &delta).into_iter().map(event));
            }
            Poll::Ready(Some(Err(error))) => {
                self.ready.push_back(event(error.body()));
                self.answers = None;
            }
            Poll::Ready(None) => {
                self.ready.extend(self.format.usage(answers.usage()).map(event));
                self.ready.push_back(event("[DONE]".to_owned()));
                self.answers = None;
            }
        }
        Poll::Ready(())
    }
}

fn event(data: String) -> Bytes {
    format!("data: {data}\n\n").into()
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
