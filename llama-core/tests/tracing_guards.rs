//! What a guard refuses is in no span and no event, whatever a subscriber asks for.
#![cfg(all(feature = "tracing", feature = "candle"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use llama_core::{ChatOptions, Dialog, FinishReason, HoldBack, Llama, StreamEvent, WordList};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Writes down whatever there is to be had: names, fields, values, of every target and level.
struct Everything {
    next: AtomicU64,
    log: Arc<Mutex<String>>,
}

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}

impl Everything {
    fn write(&self, metadata: &Metadata<'_>, record: impl FnOnce(&mut Fields<'_>)) {
        let mut log = self.log.lock().unwrap();
        write!(log, "\n{} {}", metadata.target(), metadata.name()).unwrap();
        record(&mut Fields(&mut log));
    }
}

impl Subscriber for Everything {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        self.write(span.metadata(), |fields| span.record(fields));
        Id::from_u64(self.next.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn record(&self, _: &Id, values: &Record<'_>) {
        values.record(&mut Fields(&mut self.log.lock().unwrap()));
    }

    fn event(&self, event: &Event<'_>) {
        self.write(event.metadata(), |fields| event.record(fields));
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[test]
fn what_is_refused_is_in_no_span_and_no_event() {
    let log = Arc::default();
    let everything = Everything { next: AtomicU64::new(0), log: Arc::clone(&log) };
    tracing::subscriber::set_global_default(everything).unwrap();
    let checkpoint = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-chat");
    let llama = Llama::builder().checkpoint(checkpoint).build().unwrap();
    let options = ChatOptions {
        temperature: 0.0,
        logprobs: true,
        top_logprobs: 2,
        max_gen_len: Some(60),
        ..Default::default()
    };
    let dialog = Dialog::new("Write a brief birthday message to John");
    let answer = llama.chat_completion(std::slice::from_ref(&dialog), &options).unwrap().remove(0);
    let word =
        answer.generation.content.split(|c: char| !c.is_alphanumeric()).max_by_key(|w| w.len()).unwrap();
    let list: WordList = format!("{word}\nswordfish").parse().unwrap();
    for hold_back in [HoldBack::Sentence, HoldBack::Answer, HoldBack::Characters(3)] {
        let guarded = llama.clone().with_guard(list.clone()).with_hold_back(hold_back);
        for dialog in [&dialog, &Dialog::new("Say swordfish").with_system("Be kind.")] {
            let answer = guarded.chat_completion(std::slice::from_ref(dialog), &options).unwrap().remove(0);
            assert_eq!(answer.finish_reason, FinishReason::Guarded);
            let last = guarded.chat_stream(dialog, &options).unwrap().last().unwrap().unwrap();
            assert!(matches!(last, StreamEvent::Finished { finish_reason: FinishReason::Guarded, .. }));
            let mut session = guarded.session(dialog.system()).with_options(options.clone());
            session.ask(dialog.last_user()).unwrap();
            assert!(session.left_out().is_some());
        }
    }
    drop(llama); // the engine has let go of the requests
    let log = log.lock().unwrap();
    assert!(log.contains("llama_core::trace::spans request id=") && log.contains("decode"), "{log}");
    for refused in [word, "swordfish", "birthday"] {
        assert!(!log.contains(refused), "{log}");
    }
}
