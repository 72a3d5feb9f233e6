//! The spans of a request, as a subscriber sees them.
#![cfg(feature = "tracing")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use llama_core::{ChatOptions, Dialog, Llama};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Writes down which spans were opened and closed, with their parents.
struct Recorder {
    next: AtomicU64,
    open: Mutex<HashMap<u64, &'static str>>,
    log: Arc<Mutex<Vec<String>>>,
}

impl Subscriber for Recorder {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("llama_core")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let mut open = self.open.lock().unwrap();
        let parent = span.parent().and_then(|parent| open.get(&parent.into_u64()));
        let parent = parent.map_or(String::new(), |parent| format!(" in {parent}"));
        self.log.lock().unwrap().push(format!("open {}{parent}", span.metadata().name()));
        open.insert(id, span.metadata().name());
        Id::from_u64(id)
    }

    fn try_close(&self, id: Id) -> bool {
        let name = self.open.lock().unwrap().remove(&id.into_u64()).unwrap();
        self.log.lock().unwrap().push(format!("close {name}"));
        true
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[test]
fn loading_and_the_phases_of_a_request_are_spans() {
    let log = Arc::default();
    let recorder = Recorder { next: AtomicU64::new(0), open: Mutex::default(), log: Arc::clone(&log) };
    tracing::subscriber::set_global_default(recorder).unwrap();
    let checkpoint = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-chat");
    let llama = Llama::builder().checkpoint(checkpoint).build().unwrap();
    let options = ChatOptions { max_gen_len: Some(3), ..Default::default() };
    llama.chat_completion(&[Dialog::new("Hello")], &options).unwrap();
    drop(llama); // the engine has let go of the request
    let log = log.lock().unwrap();
    let opened: Vec<&str> = log.iter().filter_map(|line| line.strip_prefix("open ")).collect();
    assert_eq!(opened, ["load", "request", "queue in request", "prefill in request", "decode in request"]);
    let closed: Vec<&str> = log.iter().filter_map(|line| line.strip_prefix("close ")).collect();
    assert_eq!(closed.len(), 5, "{log:?}");
    assert_eq!(closed[..3], ["load", "queue", "prefill"]);
}
