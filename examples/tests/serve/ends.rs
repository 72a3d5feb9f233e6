//! How answers end before they are complete: clients that leave, guards, deadlines, shutdown.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;

use serde_json::{Value, json};

use super::server::{Response, Server};
use super::{CHAT, COMPLETIONS, chat, long, text_of, with};

const ONE_AT_A_TIME: [&str; 2] = ["--max_batch_size", "1"];

#[test]
fn a_client_that_leaves_gives_its_slot_back() {
    let server = Server::start(&ONE_AT_A_TIME);
    for (gone, stream) in [(1.0, true), (2.0, false)] {
        let mut client = server.send_json(CHAT, &with(long(), json!({"stream": stream})));
        if stream {
            client.read_exact(&mut [0; 100]).unwrap();
        }
        server.wait_for("llama_running", |running| running == 1.0);
        drop(client);
        server.wait_until_idle();
        // It was not its end that it came to.
        assert_eq!(server.ended("client_gone"), gone);
    }
    assert_eq!(server.post(CHAT, &chat("Hello")).status, 200);
    assert_eq!(server.metric("serve_answer_seconds_count"), 1.0);
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody() {
    let server = Server::start(&["--max_batch_size", "2"]);
    let alone = server.post(CHAT, &with(chat("Who are you?"), json!({"seed": 3}))).json()["choices"].clone();
    // Logprobs make it more than sockets hold.
    let request = with(long(), json!({"stream": true, "logprobs": true, "top_logprobs": 20, "n": 2}));
    let unread: Vec<TcpStream> = (0..4).map(|_| server.send_json(CHAT, &request)).collect();
    server.wait_for("llama_running", |running| running == 2.0);
    let beside = server.post(CHAT, &with(chat("Who are you?"), json!({"seed": 3})));
    assert_eq!(beside.json()["choices"], alone);
    // The engine comes to its end though nobody reads, and what was said is there for who reads late.
    server.wait_for("llama_running", |running| running == 0.0);
    assert_eq!(server.metric("llama_waiting"), 0.0);
    for client in unread {
        let late = Response::read(client);
        assert!((0..2).all(|index| !text_of(&late.events(), index).is_empty()));
    }
    server.wait_until_idle();
    assert_eq!((server.ended("client_gone"), server.ended("complete")), (0.0, 6.0));
}

#[test]
fn a_stream_that_waits_is_not_silent() {
    let server = Server::start(&["--max_batch_size", "1", "--keep_alive", "1"]);
    let _first =
        [server.send_json(CHAT, &long()), server.send_json(CHAT, &long()), server.send_json(CHAT, &long())];
    server.wait_for("llama_waiting", |waiting| waiting >= 16.0);
    let waiting = server.send_json(CHAT, &with(chat("Hello"), json!({"stream": true})));
    let mut lines = BufReader::new(waiting).lines().map(Result::unwrap);
    let comment = lines.find(|line| line.starts_with(':') || line.contains("finish_reason\":\"stop"));
    assert!(comment.as_ref().is_some_and(|line| line.starts_with(':')), "{comment:?}");
}

/// A server with a list of words, and what the model says that has one of them.
fn guarded(more: &[&str]) -> (Server, Value, tempfile::NamedTempFile) {
    let words = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(words.path(), "[celebrations]\nbirthday\n[weapons]\nnerve gas\n").unwrap();
    let server = Server::start(&[&["--words", words.path().to_str().unwrap()], more].concat());
    let request = with(chat("Write a brief note for a party to John"), json!({"temperature": 0}));
    (server, request, words)
}

#[test]
fn what_guards_refuse_is_a_content_filter_s() {
    let (server, _, _words) = guarded(&[]);
    for stream in [false, true] {
        let refused = server
            .post(CHAT, &with(chat("Write a brief b\u{200b}irthday message"), json!({"stream": stream})));
        let error = &refused.json()["error"];
        assert_eq!(refused.status, 400);
        assert_eq!(
            (&error["code"], &error["param"]),
            (&json!("content_filter"), &json!("messages[0].content"))
        );
        assert!(error["message"].as_str().unwrap().contains("celebrations"));
    }
    let texts = json!({"model": "tiny-chat", "prompt": ["Once", "nerve gas"], "n": 2});
    assert_eq!(server.post(COMPLETIONS, &texts).json()["error"]["param"], "prompt[1]");
    let tokens = json!({"model": "tiny-chat", "prompt": [1, 5]});
    assert_eq!(server.post(COMPLETIONS, &tokens).json()["error"]["param"], "prompt");
    server.wait_until_idle();
    let refused =
        "serve_guard_judgements_total{side=\"input\",outcome=\"refused\",category=\"celebrations\"}";
    assert_eq!(server.metric(refused), 2.0);
}

#[test]
fn what_the_model_must_not_say_is_in_no_byte_of_the_answer() {
    let plain = Server::start(&[]);
    let request = with(chat("Who are you?"), json!({"temperature": 0, "logprobs": true}));
    let whole = plain.post(CHAT, &request).json()["choices"][0]["message"]["content"].clone();
    let whole = whole.as_str().unwrap();
    // A word of its last sentence.
    let word = whole.split_whitespace().last().unwrap().trim_matches(|c: char| !c.is_alphanumeric());
    let words = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(words.path(), format!("[secret]\n{word}\n")).unwrap();
    for hold_back in ["sentence", "answer", "5"] {
        let server = Server::start(&["--words", words.path().to_str().unwrap(), "--hold_back", hold_back]);
        let response = server.post(CHAT, &request);
        let choice = &response.json()["choices"][0];
        assert_eq!(choice["finish_reason"], "content_filter", "{}", response.body);
        assert!(whole.starts_with(choice["message"]["content"].as_str().unwrap()));
        let streamed = server.post(CHAT, &with(request.clone(), json!({"stream": true})));
        let events = streamed.events();
        assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "content_filter");
        assert_eq!(text_of(&events, 0), choice["message"]["content"].as_str().unwrap());
        for body in [&response.body, &streamed.body] {
            assert!(!body.to_lowercase().contains(&word.to_lowercase()), "{word}: {body}");
        }
        server.wait_until_idle();
        assert_eq!(
            server.metric(
                "serve_guard_judgements_total{side=\"output\",outcome=\"refused\",category=\"secret\"}"
            ),
            2.0
        );
    }
}

#[test]
fn a_guard_that_says_nothing_of_use_refuses() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-chat");
    // tiny-chat says neither `safe` nor `unsafe`.
    let server = Server::start(&["--guard", model, "--guard_max_seq_len", "512"]);
    let refused = server.post(CHAT, &chat("Hello"));
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (400, &json!("content_filter")));
    assert_eq!(
        server.metric("serve_guard_judgements_total{side=\"input\",outcome=\"failed\",category=\"\"}"),
        1.0
    );
}

#[test]
fn an_answer_out_of_time_is_cut_off_or_an_error() {
    let server = Server::start(&["--max_batch_size", "1", "--deadline", "1"]);
    let held: Vec<TcpStream> = (0..4).map(|_| server.send_json(CHAT, &long())).collect();
    server.wait_for("llama_running", |running| running == 1.0);
    // It waits until the time of those before it is up, and has then what it came later.
    let whole = server.send_json(CHAT, &long());
    let streamed = server.send_json(CHAT, &with(long(), json!({"stream": true})));
    let whole = Response::read(whole);
    if whole.status == 200 {
        let choices = whole.json()["choices"].as_array().unwrap().clone();
        assert!(choices.iter().all(|choice| choice["finish_reason"] == "length"));
        assert!(choices.iter().any(|choice| choice["message"]["content"] != ""), "{}", whole.body);
    } else {
        assert_eq!((whole.status, &whole.json()["error"]["code"]), (503, &json!("deadline_exceeded")));
    }
    let streamed = Response::read(streamed);
    let has_failed = streamed.body.contains("deadline_exceeded");
    assert_ne!(has_failed, streamed.body.contains("[DONE]"), "{}", streamed.body);
    assert!(has_failed || (0..8).any(|index| !text_of(&streamed.events(), index).is_empty()));
    // Who left before its answer came would count as gone.
    for stream in held {
        Response::read(stream);
    }
    server.wait_until_idle();
    assert_eq!((server.ended("deadline"), server.ended("client_gone")), (6.0, 0.0));
    assert_eq!(server.post(CHAT, &chat("Hello")).status, 200);
}

#[test]
fn a_shutdown_lets_what_is_begun_come_to_its_end() {
    let mut server = Server::start(&ONE_AT_A_TIME);
    let begun = server.send_json(CHAT, &with(long(), json!({"n": 2, "stream": true})));
    let whole = server.send_json(CHAT, &with(long(), json!({"n": 1})));
    server.wait_for("serve_answers_in_flight", |answers| answers == 3.0);
    server.terminate();
    let begun = Response::read(begun);
    assert!((0..2).all(|index| !text_of(&begun.events(), index).is_empty()));
    assert_eq!(Response::read(whole).json()["choices"][0]["finish_reason"], "length");
    assert!(server.wait().success());
    assert!(TcpStream::connect(server.address).is_err());
}

#[test]
fn a_shutdown_without_grace_or_hurried_cancels() {
    for grace in ["0", "1000"] {
        let mut server = Server::start(&["--max_batch_size", "1", "--grace", grace]);
        let begun = server.send_json(CHAT, &with(long(), json!({"stream": true})));
        let whole = server.send_json(CHAT, &long());
        server.wait_for("serve_answers_in_flight", |answers| answers == 16.0);
        server.terminate();
        if grace == "1000" {
            // Once the first signal was heard.
            while TcpStream::connect(server.address).is_ok() {}
            server.terminate();
        }
        let begun = Response::read(begun);
        let buffering = (begun.header("x-accel-buffering"), begun.header("cache-control"));
        assert_eq!(buffering, (Some("no"), Some("no-cache")));
        let begun = begun.body;
        assert!(begun.contains("shutting_down") && !begun.contains("[DONE]"), "{begun}");
        let whole = Response::read(whole);
        assert_eq!((whole.status, &whole.json()["error"]["code"]), (503, &json!("shutting_down")));
        assert!(server.wait().success());
    }
}
