//! Many clients at once, of whom many leave: every answer is the one that it is alone, and nothing is left behind.

use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::{Value, json};

use super::server::{Response, Server};
use super::{CHAT, chat, text_of, with};

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
    with(
        chat(texts[kind % texts.len()]),
        json!({"seed": kind, "max_tokens": 24, "stream": kind.is_multiple_of(2)}),
    )
}

fn text(response: &Response) -> String {
    assert_eq!(response.status, 200, "{}", response.body);
    match response.head.contains("text/event-stream") {
        true => text_of(&response.events(), 0),
        false => response.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned(),
    }
}

fn crowd(server: &Server, alone: &[String], answered: &AtomicUsize) {
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            scope.spawn(move || {
                for n in 0..REQUESTS {
                    // A fixed sequence that looks like none.
                    let random = (client * REQUESTS + n).wrapping_mul(0x9e37_79b9) >> 7;
                    let kind = random % alone.len();
                    let mut stream = server.send_json(CHAT, &request(kind));
                    match random / alone.len() % 4 {
                        0 => drop(stream), // leaves at once
                        1 => {
                            // leaves after some of the answer
                            let _ = stream.read(&mut vec![0; 1 + random % 700]).unwrap();
                        }
                        _ => {
                            assert_eq!(text(&Response::read(stream)), alone[kind]);
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    server.wait_until_idle();
}

#[test]
fn a_crowd_that_comes_and_goes_leaves_nothing_behind() {
    let server = Server::start(&["--max_queue_len", "600", "--max_concurrent", "600"]);
    let alone: Vec<String> = (0..12).map(|kind| text(&server.post(CHAT, &request(kind)))).collect();
    let answered = AtomicUsize::new(0);
    crowd(&server, &alone, &answered);
    #[cfg(target_os = "linux")]
    let warm = server.resident();
    crowd(&server, &alone, &answered);
    #[cfg(target_os = "linux")]
    {
        let grown = server.resident().saturating_sub(warm);
        assert!(grown < 8_000, "{grown} kB more than {warm} after a second crowd");
        println!("{warm} kB after the first crowd, {grown} more after the second");
    }
    assert!(answered.load(Ordering::Relaxed) > CLIENTS * REQUESTS / 2);
    let metrics = server.get("/metrics").body;
    let ours =
        metrics.lines().find(|line| line.starts_with("serve_responses_total") && line.contains("status=\"5"));
    assert_eq!(ours, None, "no error is ours");
    assert_eq!(server.metric("llama_slots"), 8.0);
    assert_eq!(text(&server.post(CHAT, &request(5))), alone[5]);
}
