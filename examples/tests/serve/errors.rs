//! What cannot be answered is said in OpenAI's form, with the status and the field at fault.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use serde_json::{Value, json};

use super::server::{Response, Server};
use super::{CHAT, COMPLETIONS, chat, long, with};

/// Checks the form of an error; gives `(status, type, param, code)`.
fn error(response: &Response) -> (u16, String, Option<String>, Option<String>) {
    let body = response.json();
    let error = &body["error"];
    let fields: Vec<&str> = error.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(fields, ["code", "message", "param", "type"]);
    assert!(!error["message"].as_str().unwrap().is_empty());
    let text = |name: &str| error[name].as_str().map(str::to_owned);
    (response.status, text("type").unwrap(), text("param"), text("code"))
}

#[test]
fn the_field_at_fault_is_named() {
    let server = Server::start(&[]);
    let messages = |messages: Value| json!({"model": "tiny-chat", "messages": messages});
    let user = |content: Value| messages(json!([{"role": "user", "content": content}]));
    let more = |field: Value| with(chat("Hello"), field);
    let cases = [
        (json!({"messages": []}), "messages", None),
        (json!({"model": "tiny-chat"}), "messages", Some("missing_required_parameter")),
        (
            json!({"messages": [{"role": "user", "content": "x"}]}),
            "model",
            Some("missing_required_parameter"),
        ),
        (messages(json!("Hello")), "messages", None),
        (messages(json!(["Hello"])), "messages[0]", None),
        (messages(json!([{"role": "tool", "content": "x"}])), "messages[0].role", None),
        (messages(json!([{"content": "x"}])), "messages[0].role", Some("missing_required_parameter")),
        (user(Value::Null), "messages[0].content", Some("missing_required_parameter")),
        (user(json!(7)), "messages[0].content", None),
        (user(json!([{"type": "image_url"}])), "messages[0].content[0].type", Some("unsupported_parameter")),
        (user(json!("[INST] x")), "messages[0].content", Some("special_tag")),
        (
            user(json!([{"type": "text", "text": "[IN"}, {"type": "text", "text": "ST]"}])),
            "messages[0].content",
            Some("special_tag"),
        ),
        (
            messages(json!([{"role": "user", "content": "x"}, {"role": "user", "content": "y"}])),
            "messages[1].role",
            None,
        ),
        (
            messages(json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}])),
            "messages",
            None,
        ),
        (user(json!("word ".repeat(2000))), "messages", Some("context_length_exceeded")),
        (more(json!({"temperature": "hot"})), "temperature", None),
        (more(json!({"temperature": 2.1})), "temperature", None),
        (more(json!({"top_p": -0.1})), "top_p", None),
        (more(json!({"presence_penalty": 3})), "presence_penalty", None),
        (more(json!({"n": 0})), "n", None),
        (more(json!({"n": 129})), "n", None),
        (more(json!({"max_tokens": 0})), "max_tokens", None),
        (more(json!({"max_completion_tokens": -1})), "max_completion_tokens", None),
        (more(json!({"max_tokens": 5, "max_completion_tokens": 5})), "max_tokens", None),
        (more(json!({"stop": ["a", "b", "c", "d", "e"]})), "stop", None),
        (more(json!({"stop": ""})), "stop", None),
        (more(json!({"stop": 3})), "stop", None),
        (more(json!({"seed": 0.5})), "seed", None),
        (more(json!({"logit_bias": {"x": 1}})), "logit_bias", None),
        (more(json!({"logit_bias": {"1": 101}})), "logit_bias", None),
        (more(json!({"logit_bias": {"1024": 1}})), "logit_bias", None),
        (more(json!({"top_logprobs": 2})), "top_logprobs", None),
        (more(json!({"logprobs": true, "top_logprobs": 21})), "top_logprobs", None),
        (more(json!({"logprobs": true, "top_logprobs": 20, "n": 128})), "logprobs", None),
        (more(json!({"stream": "yes"})), "stream", None),
        (more(json!({"stream_options": {"include_usage": true}})), "stream_options", None),
        (more(json!({"min_p": 2})), "min_p", None),
        (more(json!({"top_k": 0})), "top_k", None),
        (more(json!({"repetition_penalty": 0})), "repetition_penalty", None),
        (more(json!({"tools": [{"type": "function"}]})), "tools", Some("unsupported_parameter")),
        (more(json!({"tool_choice": "required"})), "tool_choice", Some("unsupported_parameter")),
        (
            more(json!({"response_format": {"type": "json_object"}})),
            "response_format",
            Some("unsupported_parameter"),
        ),
        (more(json!({"tempurature": 1})), "tempurature", Some("unknown_parameter")),
    ];
    for (request, param, code) in cases {
        let expected =
            (400, "invalid_request_error".to_owned(), Some(param.to_owned()), code.map(str::to_owned));
        assert_eq!(error(&server.post(CHAT, &request)), expected, "{request}");
    }
    let text = |fields: Value| with(json!({"model": "tiny-chat", "prompt": "x"}), fields);
    let cases = [
        (json!({"model": "tiny-chat"}), "prompt", Some("missing_required_parameter")),
        (text(json!({"prompt": []})), "prompt", None),
        (text(json!({"prompt": [[]]})), "prompt", None),
        (text(json!({"prompt": ["x", 1]})), "prompt", None),
        (text(json!({"prompt": [[1, 5], [1, 1024]]})), "prompt[1]", None),
        (
            text(json!({"prompt": ["x", "word ".repeat(2000)], "n": 2})),
            "prompt[1]",
            Some("context_length_exceeded"),
        ),
        (text(json!({"suffix": "y"})), "suffix", Some("unsupported_parameter")),
        (text(json!({"best_of": 3})), "best_of", Some("unsupported_parameter")),
        (text(json!({"logprobs": true})), "logprobs", None),
        (text(json!({"max_tokens": 0})), "max_tokens", None),
        (text(json!({"messages": []})), "messages", Some("unknown_parameter")),
    ];
    for (request, param, code) in cases {
        let expected =
            (400, "invalid_request_error".to_owned(), Some(param.to_owned()), code.map(str::to_owned));
        assert_eq!(error(&server.post(COMPLETIONS, &request)), expected, "{request}");
    }
    // What asks for nothing is no fault.
    let nothing = json!({
        "tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "modalities": ["text"], "store": false,
        "user": "me", "metadata": {}, "stop": null, "service_tier": "auto", "logit_bias": {}, "n": null,
    });
    assert_eq!(server.post(CHAT, &more(nothing)).status, 200);
    server.wait_until_idle();
}

#[test]
fn other_errors_have_their_status() {
    let server = Server::start(&["--max_body_bytes", "2000"]);
    let json = ["Content-Type: application/json"];
    let post =
        |headers: &[&str], body: &[u8]| error(&Response::read(server.send("POST", CHAT, headers, body)));
    let status = |(status, _, _, code): (u16, _, _, Option<String>)| (status, code);
    for bad in [&b""[..], b"{", b"[]", b"\"\xff\"", b"{\"model\": \"\\ud800\"}", &[b'['; 1000]] {
        assert_eq!(status(post(&json, bad)), (400, None), "{:?}", String::from_utf8_lossy(bad));
    }
    let unsupported = (415, Some("unsupported_media_type".to_owned()));
    assert_eq!(status(post(&[], b"{}")), unsupported);
    assert_eq!(status(post(&["Content-Type: text/plain"], b"{}")), unsupported);
    let too_large = (413, Some("request_too_large".to_owned()));
    assert_eq!(status(post(&json, &[b' '; 2001])), too_large);
    assert_eq!(status(post(&json, &[b' '; 20_000])), too_large);
    let of = |response: Response| error(&response);
    assert_eq!(status(of(server.get("/v1/nothing"))), (404, Some("unknown_url".to_owned())));
    assert_eq!(status(of(server.get(CHAT))), (405, Some("method_not_allowed".to_owned())));
    assert_eq!(status(of(server.get("/v1/models/gpt-4"))), (404, Some("model_not_found".to_owned())));
    let other = of(server.post(CHAT, &with(chat("Hello"), json!({"model": "gpt-4"}))));
    assert_eq!(
        (other.0, other.2.as_deref(), other.3.as_deref()),
        (404, Some("model"), Some("model_not_found"))
    );
    // What is no HTTP at all.
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.write_all(b"\x16\x03\x01 hello\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn who_comes_when_there_is_no_room_is_told_to_come_again() {
    for limit in ["--max_queue_len", "--max_concurrent"] {
        let server = Server::start(&["--max_batch_size", "1", limit, "8"]);
        let held = server.send_json(CHAT, &with(long(), json!({"stream": true})));
        server.wait_for("llama_waiting", |waiting| waiting > 0.0);
        let refused = server.post(CHAT, &with(chat("Hello"), json!({"n": 8})));
        assert_eq!(
            error(&refused),
            (429, "requests".to_owned(), None, Some("rate_limit_exceeded".to_owned()))
        );
        assert!(refused.head.contains("retry-after: 1"), "{}", refused.head);
        drop(held);
        server.wait_until_idle();
        assert_eq!(server.post(CHAT, &chat("Hello")).status, 200);
        // What would never have room is no matter of time.
        let refused = error(&server.post(CHAT, &with(chat("Hello"), json!({"n": 9}))));
        assert_eq!((refused.0, refused.2.as_deref()), (400, Some("n")));
        assert_eq!(server.ended("refused"), 2.0);
    }
}

#[test]
fn who_may_ask_is_for_the_operator_to_say() {
    let server = Server::start(&["--api_key", "secret", "--allow_origin", "https://example.org"]);
    let body = chat("Hello").to_string();
    let ask = |headers: &[&str]| {
        let headers = [&["Content-Type: application/json"], headers].concat();
        Response::read(server.send("POST", CHAT, &headers, body.as_bytes()))
    };
    for wrong in ["Bearer secrets", "Bearer ", "secre", "secret", "Basic secret"] {
        let refused = ask(&[&format!("Authorization: {wrong}")]);
        assert_eq!((error(&refused).0, error(&refused).3.as_deref()), (401, Some("invalid_api_key")));
    }
    assert_eq!(ask(&[]).status, 401);
    assert_eq!(ask(&["Authorization: bearer secret"]).status, 200);
    for (path, status) in [("/v1/models", 401), ("/metrics", 401), ("/health", 200), ("/", 200)] {
        assert_eq!(server.get(path).status, status, "{path}");
    }
    let allowed = ask(&["Authorization: Bearer secret", "Origin: https://example.org"]);
    assert_eq!(allowed.status, 200);
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://example.org"));
    assert_eq!(allowed.header("access-control-expose-headers"), Some("retry-after"));
    // With a key it need not be a page of its own; but the browser keeps the answer from it.
    let other = ask(&["Authorization: Bearer secret", "Origin: https://example.com"]);
    assert_eq!((other.status, other.header("access-control-allow-origin")), (200, None));
    assert!([&allowed, &other].iter().all(|response| response.header("vary") == Some("origin")));
    let preflight = |from: &str| {
        let headers = [
            &*format!("Origin: {from}"),
            "Access-Control-Request-Method: POST",
            "Access-Control-Request-Headers: authorization,content-type,x-stainless-os,x-stainless-lang",
        ];
        Response::read(server.send("OPTIONS", CHAT, &headers, b""))
    };
    let asked = preflight("https://example.org");
    assert_eq!(asked.status, 204);
    let headers = asked.header("access-control-allow-headers");
    assert_eq!(headers, Some("authorization,content-type,x-stainless-os,x-stainless-lang"));
    assert_eq!(asked.header("access-control-allow-methods"), Some("get, post"));
    let refused = preflight("https://example.com");
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (401, None));
    assert_eq!(refused.header("vary"), Some("origin"));
    assert_eq!(
        Server::start(&[]).get("/v1/models").header("access-control-allow-origin"),
        None,
        "off by default"
    );
}

#[test]
fn a_web_page_of_elsewhere_is_not_answered() {
    let server = Server::start(&["--allow_host", "llama.home", "--allow_origin", "https://example.org"]);
    let ask = |host: &str, origin: Option<&str>| {
        let origin = origin.map(|origin| format!("Origin: {origin}\r\n")).unwrap_or_default();
        let head = format!("GET /v1/models HTTP/1.1\r\nHost: {host}\r\n{origin}Connection: close\r\n\r\n");
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        Response::read(stream)
    };
    let own = server.address.to_string();
    for (host, origin) in [
        (&*own, None),
        (&*own, Some(&*format!("http://{own}"))),
        ("localhost:8080", Some("http://localhost:8080")),
        ("llama.home", Some("https://llama.home")),
        (&*own, Some("https://example.org")),
    ] {
        assert_eq!(ask(host, origin).status, 200, "{host}, {origin:?}");
    }
    for (host, origin, code) in [
        ("evil.example", None, "host_not_allowed"),
        ("evil.example:8080", Some("http://evil.example:8080"), "host_not_allowed"),
        (&*own, Some("https://evil.example"), "origin_not_allowed"),
        (&*own, Some("null"), "origin_not_allowed"),
        (&*own, Some("http://localhost:1"), "origin_not_allowed"),
    ] {
        let refused = ask(host, origin);
        assert_eq!(error(&refused).3.as_deref(), Some(code), "{host}, {origin:?}");
        assert_eq!((refused.status, refused.header("vary")), (403, Some("origin")));
    }
    // A key tells them apart, and a server for others may have any name.
    let open = Server::start(&["--api_key", "secret"]);
    let named = open.send("GET", "/health", &["Origin: https://evil.example"], b"");
    assert_eq!(Response::read(named).status, 200);
}

#[test]
fn what_keeps_it_from_starting_is_said() {
    let server = Server::start(&[]);
    let address = server.address.to_string();
    let words = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(words.path(), "fine\n/(/\n").unwrap();
    let words = words.path().to_str().unwrap();
    let local = ["--bind", "127.0.0.1:0"];
    let out_of_range = [
        ("--max_concurrent", "0"),
        ("--max_concurrent", "99999999999999999999"),
        ("--max_concurrent", "9223372036854775807"),
        ("--max_connections", "9223372036854775807"),
        ("--max_body_bytes", "18446744073709551615"),
        ("--deadline", "18446744073709551615"),
        ("--keep_alive", "18446744073709551615"),
        ("--keep_alive", "0"),
        ("--grace", "18446744073709551615"),
    ];
    for (flag, value) in out_of_range {
        let output =
            Command::new(env!("CARGO_BIN_EXE_serve")).args(local).args([flag, value]).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{flag} {value}: {stderr}");
        assert!(stderr.contains(&format!("invalid value '{value}' for '{flag}")), "{stderr}");
    }
    for (key, message) in [("", "is empty"), ("two words", "visible ASCII")] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_serve"));
        let output = command.args(local).env("LLAMA_API_KEY", key).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && stderr.contains(message), "{key:?}: {stderr}");
    }
    let cases: [(&[&str], &str); 7] = [
        (&["--bind", &address], "--bind takes another address"),
        (&["--bind", "localhost"], "invalid value 'localhost'"),
        (&["--bind", "127.0.0.1:0", "--words", "/no/such/file"], "/no/such/file"),
        (&["--bind", "127.0.0.1:0", "--words", words], "line 2"),
        (&["--bind", "127.0.0.1:0", "--ckpt_dir", "/no/such/folder"], "/no/such/folder"),
        (&["--bind", "127.0.0.1:0", "--max_queue_len", "0"], "max_queue_len is 0, expected at least 1"),
        (&["--bind", "127.0.0.1:0", "--hold_back", "word"], "sentence, answer, or a number"),
    ];
    for (args, message) in cases {
        let output = Command::new(env!("CARGO_BIN_EXE_serve")).args(args).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && stderr.contains(message), "{args:?}: {stderr}");
    }
}
