//! Many clients at once, of whom many leave: every answer is the one that it is alone, and nothing is left behind.

use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::{Value, json};

use super::server::{Response, Server};
use super::{CHAT, chat, with};

const CLIENTS: usize = 200;
const REQUESTS: usize = 3;

/// A request, of not many kinds, so that each can be asked alone before.
fn request(kind: usize) -> Value {
    let texts = [
        "Hello",
        "Who are you?",
        "What is the recipe of mayonnaise?",
        "I am going to Paris, what should I see?",
    ];
    let how = json!({
        "seed": kind, "max_tokens": 24, "stream": kind.is_multiple_of(2), "n": 1 + kind % 3,
        "logprobs": !kind.is_multiple_of(4), "top_logprobs": if kind.is_multiple_of(4) { 0 } else { 20 },
    });
    with(chat(texts[kind % texts.len()]), how)
}

/// All that an answer says: texts, tokens with their logprobs, and ends.
fn answers(response: &Response) -> Vec<(String, Vec<Value>, Value)> {
    assert_eq!(response.status, 200, "{}", response.body);
    let chunks = match response.head.contains("text/event-stream") {
        true => response.events(),
        false => vec![response.json()],
    };
    let mut answers = Vec::new();
    for choice in chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap()) {
        let index = usize::try_from(choice["index"].as_u64().unwrap()).unwrap();
        answers.resize(answers.len().max(index + 1), (String::new(), Vec::new(), Value::Null));
        let (text, tokens, end) = &mut answers[index];
        let said = choice["delta"]["content"].as_str().or(choice["message"]["content"].as_str());
        text.push_str(said.unwrap_or_default());
        tokens.extend(choice["logprobs"]["content"].as_array().cloned().unwrap_or_default());
        *end = choice["finish_reason"].clone();
    }
    answers
}

fn crowd(server: &Server, alone: &[Vec<(String, Vec<Value>, Value)>], answered: &AtomicUsize) {
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            scope.spawn(move || {
                for n in 0..REQUESTS {
                    // A fixed sequence that looks like none.
                    let random = (client * REQUESTS + n).wrapping_mul(0x9e37_79b9) >> 7;
                    let kind = random % alone.len();
                    let mut stream = server.send_json(CHAT, &request(kind));
                    match random / alone.len() % 4 {
                        0 => drop(stream), // leaves at once, mostly while its prompt is judged
                        1 => {
                            // leaves after some of the answer
                            let _ = stream.read(&mut vec![0; 1 + random % 700]).unwrap();
                        }
                        _ => {
                            assert_eq!(answers(&Response::read(stream)), alone[kind]);
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    server.wait_until_idle();
}

/// Crowds of a server with these flags, until one takes no more memory than the one before it: how many of a crowd are there at once differs, but
/// what is left behind is left behind by each.
fn comes_and_goes(flags: &[&str]) {
    let room = ["--max_queue_len", "1800", "--max_concurrent", "1800"];
    let server = Server::start(&[&room, flags].concat());
    let alone: Vec<_> = (0..12).map(|kind| answers(&server.post(CHAT, &request(kind)))).collect();
    let answered = AtomicUsize::new(0);
    crowd(&server, &alone, &answered);
    let mut resident = vec![server.resident()];
    let is_flat = |resident: &[u64]| matches!(resident, [.., before, last] if *last < before + 8_000);
    while !is_flat(&resident) && resident.len() < 5 {
        crowd(&server, &alone, &answered);
        resident.push(server.resident());
    }
    assert!(is_flat(&resident), "kB after each crowd: {resident:?}");
    let n_requests = resident.len() * CLIENTS * REQUESTS;
    let answered = answered.load(Ordering::Relaxed);
    assert!(answered > n_requests / 4);
    let metrics = server.get("/metrics").body;
    let ours =
        metrics.lines().find(|line| line.starts_with("serve_responses_total") && line.contains("status=\"5"));
    assert_eq!(ours, None, "no error is ours");
    // Every request has one end, and what was answered was complete.
    let ended = ["complete", "client_gone", "refused", "error", "deadline", "shutdown"];
    let [complete, gone, refused, rest @ ..] = ended.map(|outcome| server.ended(outcome));
    assert!(complete >= (alone.len() + answered) as f64, "{metrics}");
    assert!(complete + gone + refused <= (alone.len() + n_requests) as f64, "{metrics}");
    assert!(gone > 0.0 && rest == [0.0; 3], "{metrics}");
    assert_eq!(server.metric("llama_slots"), 8.0);
    assert_eq!(answers(&server.post(CHAT, &request(5))), alone[5]);
}

#[test]
fn a_crowd_that_comes_and_goes_leaves_nothing_behind() {
    comes_and_goes(&[]);
}

#[test]
fn nor_does_one_whose_answers_are_judged() {
    let words = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(words.path(), "[food]\nmustard\n").unwrap();
    comes_and_goes(&["--words", words.path().to_str().unwrap()]);
}
