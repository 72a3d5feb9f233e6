//! Time to the first token of a conversation's turns: of the first, of the tenth, and of the tenth asked afresh.
//!
//! What the engine has kept of the turns before is not computed again, so the tenth turn should take about as long as the first: what
//! grows is attention alone, which looks back on them. Every message differs in its first word, and every dialog that is asked afresh in its
//! system prompt's, so that nothing but the turns before is found.

#![allow(clippy::unwrap_used, reason = "a benchmark ends where it fails")]

use std::path::Path;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use llama_core::{ChatOptions, Llama, Session};

/// Turns before the one that is measured.
const TURNS: usize = 9;

const MESSAGE: &str = "is the number of this message. Tell me what you would see in Paris, in Rome and in London, and say why, please.";

/// A conversation of so many turns; the last is measured.
fn session(llama: &Llama, turns: usize, system: &str) -> Session {
    let mut session = llama.session(Some(system));
    for turn in 0..turns {
        session = session.with_options(options(16));
        session.ask(format!("{turn} {MESSAGE}")).unwrap();
    }
    session.with_options(options(1))
}

fn options(max_gen_len: usize) -> ChatOptions {
    ChatOptions { max_gen_len: Some(max_gen_len), ..Default::default() }
}

fn first_token(c: &mut Criterion) {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-chat");
    // One slot that answers, and one that keeps the conversation.
    let llama =
        Llama::builder().checkpoint(model).max_seq_len(1024).max_batch_size(1).idle_slots(1).build().unwrap();
    let mut group = c.benchmark_group("time to first token");
    let mut number = 1000;
    for (name, turns) in [("turn 1", 0), ("turn 10", TURNS)] {
        let kept = session(&llama, turns, "Answer in a few words.");
        let mut ask = || {
            number += 1;
            kept.clone().ask(format!("{number} {MESSAGE}")).unwrap().prediction
        };
        ask();
        let answer = ask();
        group.throughput(Throughput::Elements(
            (answer.usage.prompt_tokens - answer.metrics.cached_tokens) as u64,
        ));
        group.bench_function(name, |b| b.iter(&mut ask));
    }
    let whole = session(&llama, TURNS, "Answer in a few words.");
    let mut ask = || {
        number += 1;
        let mut afresh = whole.clone();
        afresh.set_system(Some(format!("{number} words at most.")));
        afresh.ask(MESSAGE).unwrap().prediction
    };
    let answer = ask();
    group
        .throughput(Throughput::Elements((answer.usage.prompt_tokens - answer.metrics.cached_tokens) as u64));
    group.bench_function("turn 10, asked afresh", |b| b.iter(&mut ask));
    group.finish();
}

criterion_group!(benches, first_token);
criterion_main!(benches);
