//! [`CancelToken`]: ends requests from anywhere.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::queue::Queue;

/// Ends the requests that were given it, from any thread. Clones are the same token; a cancelled one stays cancelled, and requests
/// that are given it later end at once.
///
/// A request is ended before the next forward pass, whether it waits, is prefilled or answers; what it has said is kept.
///
/// ```no_run
/// # let llama = llama_core::Llama::build("llama-2-7b-chat", "tokenizer.model", 512, 8)?;
/// use llama_core::{CancelToken, ChatOptions, Dialog};
///
/// let cancel = CancelToken::new();
/// let options = ChatOptions { cancel: Some(cancel.clone()), ..Default::default() };
/// std::thread::spawn(move || cancel.cancel());
/// let answers = llama.chat_completion(&[Dialog::new("Tell me a long story.")], &options)?;
/// println!("{:?}: {}", answers[0].finish_reason, answers[0].generation.content);
/// # Ok::<(), llama_core::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct CancelToken {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    cancelled: AtomicBool,
    /// Where callers with this token wait for room.
    queues: Mutex<Vec<Weak<Queue>>>,
}

impl CancelToken {
    /// A token that is not cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the requests that have this token.
    pub fn cancel(&self) {
        self.inner.cancelled.store(true, Ordering::Release);
        let queues = std::mem::take(&mut *self.inner.queues.lock().unwrap_or_else(PoisonError::into_inner));
        queues.iter().filter_map(Weak::upgrade).for_each(|queue| queue.wake());
    }

    /// Whether it was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.inner.cancelled.load(Ordering::Acquire)
    }

    /// From now on cancelling wakes those who wait in that queue.
    pub(super) fn wakes(&self, queue: &Arc<Queue>) {
        let mut queues = self.inner.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.retain(|known| known.strong_count() > 0 && !std::ptr::eq(known.as_ptr(), Arc::as_ptr(queue)));
        queues.push(Arc::downgrade(queue));
    }
}

/// Whether they are the same token.
impl PartialEq for CancelToken {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}
