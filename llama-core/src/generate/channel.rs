//! The events of a call, from the engine's thread to the caller: one channel for all of the call's requests.
//!
//! A caller blocks or is woken by a [`Waker`], as it likes; the engine never waits for a caller. What lies in a channel is bounded by what was
//! asked for: a request has at most as many tokens as the context.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::request::Event;

#[derive(Debug, Default)]
struct Channel {
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// With the request's place in the call.
    events: VecDeque<(usize, Event)>,
    senders: usize,
    waker: Option<Waker>,
}

impl Channel {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that could panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        let waker = state.waker.take();
        drop(state);
        self.arrived.notify_one();
        // Without the lock: a waker runs code of the caller's.
        if let Some(waker) = waker {
            // Whoever is woken wrongly harms nobody else.
            let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
    }
}

/// The engine's end for one request.
#[derive(Debug)]
pub(super) struct EventSender {
    channel: Arc<Channel>,
    place: usize,
    unwanted: Arc<AtomicBool>,
}

impl EventSender {
    pub(super) fn send(&self, event: Event) {
        self.channel.change(|state| state.events.push_back((self.place, event)));
    }

    /// Whether the caller wants to hear no more of the request.
    pub(super) fn is_unwanted(&self) -> bool {
        self.unwanted.load(Ordering::Acquire)
    }
}

impl Drop for EventSender {
    fn drop(&mut self) {
        self.channel.change(|state| state.senders -= 1);
    }
}

/// The caller's end. Dropping it ends the requests.
#[derive(Debug, Default)]
pub(crate) struct Submission {
    channel: Arc<Channel>,
    requests: Vec<(usize, Arc<AtomicBool>)>,
}

impl Submission {
    /// The engine's end for a further request. Made before the first event is waited for.
    pub(super) fn sender(&mut self, place: usize) -> EventSender {
        let unwanted = Arc::new(AtomicBool::new(false));
        self.requests.push((place, Arc::clone(&unwanted)));
        self.channel.lock().senders += 1;
        EventSender { channel: Arc::clone(&self.channel), place, unwanted }
    }

    /// The next event, and the place of its request; `None` when the engine is gone.
    pub(crate) fn recv(&self) -> Option<(usize, Event)> {
        let mut state = self.channel.lock();
        loop {
            if let Some(event) = state.events.pop_front() {
                return Some(event);
            }
            if state.senders == 0 {
                return None;
            }
            state = self.channel.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// As [`recv`](Self::recv), woken by the context's waker instead of blocking.
    pub(crate) fn poll_recv(&self, context: &Context<'_>) -> Poll<Option<(usize, Event)>> {
        let mut state = self.channel.lock();
        if let Some(event) = state.events.pop_front() {
            return Poll::Ready(Some(event));
        }
        if state.senders == 0 {
            return Poll::Ready(None);
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }

    /// Ends a request: nothing more of it is wanted.
    pub(crate) fn give_up(&self, place: usize) {
        for (_, unwanted) in self.requests.iter().filter(|(other, _)| *other == place) {
            unwanted.store(true, Ordering::Release);
        }
    }
}

impl Drop for Submission {
    fn drop(&mut self) {
        self.requests.iter().for_each(|(_, unwanted)| unwanted.store(true, Ordering::Release));
    }
}
