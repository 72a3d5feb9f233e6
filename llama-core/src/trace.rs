//! What the library does as spans of `tracing`, behind the feature of that name: `load`; and for each request `request`, with its phases
//! `queue`, `prefill` and `decode` in it.
//!
//! A phase's span is open as long as the phase lasts, across forward passes that many requests share; so none of them is ever entered.
//! Without the feature there is nothing here.

#[cfg(feature = "tracing")]
mod spans {
    use tracing::{Span, info_span};

    /// The phases of one request.
    #[derive(Debug)]
    pub(crate) struct Phases {
        request: Span,
        phase: Span,
    }

    impl Phases {
        /// It waits for a slot. Its span is a child of the caller's.
        pub(crate) fn queued(id: u64, prompt_tokens: usize) -> Self {
            let request = info_span!("request", id, prompt_tokens);
            let phase = info_span!(parent: &request, "queue");
            Self { request, phase }
        }

        /// It has a slot.
        pub(crate) fn prefilling(&mut self, cached_tokens: usize) {
            self.phase = info_span!(parent: &self.request, "prefill", cached_tokens);
        }

        /// Its first token was sampled.
        pub(crate) fn decoding(&mut self) {
            self.phase = info_span!(parent: &self.request, "decode");
        }
    }

    /// Open while it lives.
    pub(crate) fn load() -> impl Sized {
        info_span!("load").entered()
    }
}

#[cfg(not(feature = "tracing"))]
mod spans {
    #[derive(Debug)]
    pub(crate) struct Phases;

    impl Phases {
        pub(crate) fn queued(_id: u64, _prompt_tokens: usize) -> Self {
            Self
        }

        pub(crate) fn prefilling(&mut self, _cached_tokens: usize) {}

        pub(crate) fn decoding(&mut self) {}
    }

    pub(crate) fn load() -> impl Sized {}
}

pub(crate) use spans::{Phases, load};
