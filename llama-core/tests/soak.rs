//! Many requests from many threads, some cancelled, some in conversations: every answer is that of the same request alone, nothing is lost, and
//! memory does not grow.
//!
//! 300 requests, or as many as the environment variable `LLAMA_SOAK` says: `LLAMA_SOAK=10000 cargo test --release -p llama-core --test soak`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use llama_backend::testing::{Rng, process_status};
use llama_core::{
    CancelToken, ChatOptions, Dialog, Error, FinishReason, GenerationOptions, Llama, StreamEvent, TokenId,
};

const TINY_CHAT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-chat");
const THREADS: usize = 16;
const MAX_PROMPT: usize = 400;
const MAX_GEN_LEN: usize = 24;

const SYSTEMS: [&str; 3] = [
    "Always answer with Haiku.",
    "Always answer with emojis.",
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.",
];

const WORDS: [&str; 12] = [
    "the",
    "mayonnaise",
    "birthday",
    "message",
    "lake",
    "Paris",
    "recipe",
    "moon",
    "write",
    "brief",
    "I",
    "secret",
];

fn builder() -> llama_core::LlamaBuilder {
    Llama::builder().checkpoint(TINY_CHAT).max_seq_len(512).threads(1)
}

/// A request, made of its number alone.
struct Asked {
    prompt: Prompt,
    options: GenerationOptions,
    /// After how many events the caller leaves (even numbers) or cancels (odd ones).
    leaves_after: Option<usize>,
}

enum Prompt {
    Text(String),
    Dialog(Dialog),
    /// A session under a system prompt, of which the last message is measured.
    Session(&'static str, Vec<String>),
}

fn words(rng: &mut Rng, n: usize) -> String {
    (0..n).map(|_| WORDS[rng.below(WORDS.len())]).collect::<Vec<_>>().join(" ")
}

fn asked(number: usize, llama: &Llama) -> Asked {
    let mut rng = Rng::new(number as u64);
    // From BOS alone up to 400 tokens, more often few.
    let target = 1 + rng.below(MAX_PROMPT) * (1 + rng.below(4)) / 4 * (1 + rng.below(4)) / 4;
    let prompt = match rng.below(10) {
        0..3 => Prompt::Text(words(&mut rng, target)),
        kind => {
            let system = SYSTEMS[rng.below(SYSTEMS.len())];
            let message = words(&mut rng, 1 + target / 8);
            if kind < 5 {
                // One in five is a conversation.
                let later = 1 + rng.below(3);
                let later = (0..later).map(|_| words(&mut rng, 4));
                Prompt::Session(system, std::iter::once(message).chain(later).collect())
            } else {
                Prompt::Dialog(Dialog::new(message).with_system(system))
            }
        }
    };
    let prompt = match prompt {
        Prompt::Text(text) => {
            let mut ids = llama.tokenizer().encode_prompt(&text);
            ids.truncate(target);
            Prompt::Text(llama.tokenizer().decode(&ids).unwrap())
        }
        other => other,
    };
    let options = GenerationOptions {
        temperature: 0.8,
        seed: Some(number as u64),
        logprobs: true,
        max_gen_len: Some(MAX_GEN_LEN),
        ..Default::default()
    };
    Asked { prompt, options, leaves_after: (rng.below(10) < 3).then(|| rng.below(12)) }
}

/// The tokens and the bits of their logprobs, as a hash: the test is to keep no answers in the memory that it measures.
#[derive(Debug, Default, Clone)]
struct Digest(DefaultHasher);

impl Digest {
    fn push(&mut self, id: TokenId, logprob: f32) {
        (id, logprob.to_bits()).hash(&mut self.0);
    }
}

/// The same request alone, on a model of which every slot is new.
fn alone(asked: &Asked) -> u64 {
    let model = || builder().max_batch_size(1).build().unwrap();
    let oracle = model();
    let encode = |dialog: &Dialog| oracle.tokenizer().encode_dialog(dialog).unwrap();
    let prompt = match &asked.prompt {
        Prompt::Text(text) => oracle.tokenizer().encode_prompt(text),
        Prompt::Dialog(dialog) => encode(dialog),
        Prompt::Session(system, messages) => {
            // The whole dialog asked afresh, turn by turn.
            let (earlier, mut dialog) = (model(), Dialog::new(&*messages[0]).with_system(*system));
            for message in &messages[1..] {
                let answer = earlier.chat_completion(&[dialog.clone()], &asked.options).unwrap().remove(0);
                dialog = dialog.then(answer.generation.content, &**message);
            }
            encode(&dialog)
        }
    };
    let (tokens, logprobs) = oracle.generate(&[prompt], &asked.options).unwrap();
    let mut digest = Digest::default();
    tokens[0].iter().zip(&logprobs.unwrap()[0]).for_each(|(&id, &logprob)| digest.push(id, logprob));
    digest.0.finish()
}

#[test]
fn many_requests_from_many_threads_are_answered_as_alone() {
    let n_requests: usize =
        std::env::var("LLAMA_SOAK").map_or(300, |n| n.parse().expect("LLAMA_SOAK is a number"));
    let llama = builder().max_batch_size(8).idle_slots(4).max_queue_len(8).build().unwrap();
    let next = AtomicUsize::new(0);
    let finished = Mutex::new(Vec::new());
    let memory = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= n_requests {
                        break;
                    }
                    let answer = ask(&llama, &asked(number, &llama));
                    finished.lock().unwrap().extend(answer.map(|answer| (number, answer)));
                    memory.lock().unwrap().extend(process_status("VmRSS"));
                }
            });
        }
    });
    // Those that were dropped last are seen to have gone within a step.
    let mut stats = llama.stats();
    for _ in 0..1000 {
        if (stats.running, stats.waiting) == (0, 0) {
            break;
        }
        thread::sleep(Duration::from_millis(2));
        stats = llama.stats();
    }
    assert_eq!((stats.running, stats.waiting), (0, 0), "no slot is lost: {stats:?}");
    // Every prompt begins with BOS: what is reused must be more than that.
    assert!(stats.forks > 0 && stats.cached_tokens > 10 * stats.prefix_hits, "{stats:?}");

    let finished = finished.into_inner().unwrap();
    assert!(finished.len() >= n_requests / 2, "{} of {n_requests} finished", finished.len());
    let memory = memory.into_inner().unwrap();
    let tenth = (memory.len() / 10).max(1);
    let greatest = |readings: &[u64]| readings.iter().copied().max().unwrap_or(0);
    let (first, last) = (
        greatest(&memory[..tenth.min(memory.len())]),
        greatest(&memory[memory.len().saturating_sub(tenth)..]),
    );
    println!("{} of {n_requests} finished; {stats:?}; resident {first} to {last} bytes", finished.len());
    assert!(last <= first + 5_000_000, "resident memory grew from {first} to {last} bytes");

    let left = Mutex::new(finished.into_iter());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let take = || left.lock().unwrap().next();
                while let Some((number, answer)) = take() {
                    assert_eq!(answer, alone(&asked(number, &llama)), "request {number}");
                }
            });
        }
    });
}

/// The answer, if it was waited for.
fn ask(llama: &Llama, asked: &Asked) -> Option<u64> {
    let options: &ChatOptions = &asked.options;
    match &asked.prompt {
        Prompt::Text(text) => {
            let stream = llama.text_stream(text, options).unwrap();
            read(stream.cancel_token(), stream, asked.leaves_after)
        }
        Prompt::Dialog(dialog) => {
            let stream = llama.chat_stream(dialog, options).unwrap();
            read(stream.cancel_token(), stream, asked.leaves_after)
        }
        Prompt::Session(system, messages) => {
            let mut session = llama.session(Some(system)).with_options(options.clone());
            let (last, earlier) = messages.split_last().unwrap();
            for message in earlier {
                session.ask(&**message).unwrap();
            }
            let stream = session.send(&**last).unwrap();
            read(stream.cancel_token(), stream, asked.leaves_after)
        }
    }
}

fn read(
    cancel: CancelToken,
    mut stream: impl Iterator<Item = Result<StreamEvent, Error>>,
    leaves_after: Option<usize>,
) -> Option<u64> {
    let mut answer = Digest::default();
    let mut n_tokens = 0;
    let mut n_events = 0;
    loop {
        if leaves_after == Some(n_events) {
            if n_events % 2 == 0 {
                return None;
            }
            cancel.cancel();
        }
        n_events += 1;
        match stream.next()?.unwrap() {
            StreamEvent::Token(token) => {
                answer.push(token.id, token.logprob.unwrap());
                n_tokens += 1;
            }
            StreamEvent::Finished { finish_reason: FinishReason::Cancelled, .. } => return None,
            StreamEvent::Finished { usage, .. } => {
                assert_eq!(usage.completion_tokens, n_tokens);
                return Some(answer.0.finish());
            }
            _ => {}
        }
    }
}
