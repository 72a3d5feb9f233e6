//! The program `serve`, asked over the loopback: every route, every error, streams, guards, limits, shutdown, and a crowd.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod crowd;
mod ends;
mod errors;
mod server;

use examples::tiny_chat;
use llama_core::{ChatOptions, CompletionOptions, Dialog};
use serde_json::{Value, json};
use server::Server;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn chat(text: &str) -> Value {
    json!({"model": "tiny-chat", "messages": [{"role": "user", "content": text}]})
}

/// A value with more fields.
fn with(mut request: Value, more: Value) -> Value {
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request
}

/// A request that takes long: eight answers that fill the context, one after the other where the batch is 1.
fn long() -> Value {
    with(chat("Hello"), json!({"n": 8, "logit_bias": {"2": -100}}))
}

fn text_of(events: &[Value], index: usize) -> String {
    let choices = events.iter().flat_map(|event| event["choices"].as_array().unwrap());
    let own = choices.filter(|choice| choice["index"] == index);
    own.filter_map(|choice| choice["delta"]["content"].as_str().or(choice["text"].as_str())).collect()
}

#[test]
fn an_answer_is_the_library_s_whole_and_streamed() {
    let llama = tiny_chat().unwrap().build().unwrap();
    let server = Server::start(&[]);
    let text = "Write a brief birthday message to John";
    let dialogs = [Dialog::new(text).with_system("Always answer with emoji"), Dialog::new(text)];
    let options = ChatOptions { seed: Some(7), max_gen_len: Some(30), ..Default::default() };
    for dialog in dialogs {
        let expected = llama.chat_completion(&[dialog.clone(), dialog.clone()], &options).unwrap();
        let request =
            json!({"model": "tiny-chat", "messages": dialog, "seed": 7, "max_completion_tokens": 30, "n": 2});
        let whole = server.post(CHAT, &request);
        assert_eq!(whole.status, 200, "{}", whole.body);
        let whole = whole.json();
        assert_eq!(whole["object"], "chat.completion");
        let streamed = with(request, json!({"stream": true, "stream_options": {"include_usage": true}}));
        let streamed = server.post(CHAT, &streamed);
        assert!(streamed.head.contains("content-type: text/event-stream"), "{}", streamed.head);
        let events = streamed.events();
        for (index, expected) in expected.iter().enumerate() {
            let choice = &whole["choices"][index];
            assert_eq!(choice["message"]["content"], expected.generation.content);
            assert_eq!(choice["message"]["role"], "assistant");
            assert_eq!(text_of(&events, index), expected.generation.content);
            let mut own = events.iter().filter(|event| event["choices"][0]["index"] == index);
            assert_eq!(own.next().unwrap()["choices"][0]["delta"]["role"], "assistant");
            assert_eq!(own.next_back().unwrap()["choices"][0]["finish_reason"], choice["finish_reason"]);
            assert!(own.all(|event| event["choices"][0]["finish_reason"].is_null()));
        }
        let completion_tokens: usize = expected.iter().map(|answer| answer.usage.completion_tokens).sum();
        let (last, others) = events.split_last().unwrap();
        for usage in [&whole["usage"], &last["usage"]] {
            assert_eq!(usage["prompt_tokens"], expected[0].usage.prompt_tokens);
            assert_eq!(usage["completion_tokens"], completion_tokens);
            assert_eq!(usage["total_tokens"], expected[0].usage.prompt_tokens + completion_tokens);
        }
        assert_eq!(last["choices"], json!([]));
        assert!(others.iter().all(|event| event["usage"].is_null() && event["id"] == last["id"]));
        assert!(others.iter().all(|event| event["object"] == "chat.completion.chunk"));
    }
}

#[test]
fn who_names_no_seed_gets_another_answer_each_time() {
    // A model that is less sure than it is.
    let flat = json!({"temperature": 2, "top_p": 1, "logit_bias": {"2": -100}, "max_tokens": 40, "n": 2});
    let request = with(chat("Hello"), flat);
    let answers = |server: &Server, request: &Value| -> Vec<String> {
        let answered = || server.post(CHAT, request).json()["choices"].to_string();
        (0..3).map(|_| answered()).collect()
    };
    let is_one = |answers: &[String]| answers.iter().all(|answer| *answer == answers[0]);
    let [first, second] = [Server::start(&[]), Server::start(&[])];
    let (told, others) = (answers(&first, &request), answers(&second, &request));
    assert!(!is_one(&told), "{told:?}");
    assert_ne!(told, others, "nor does a new server begin anew");
    let seeded = with(request.clone(), json!({"seed": 7}));
    assert!(is_one(&[answers(&first, &seeded), answers(&second, &seeded)].concat()));
    // A whole sequence can be had again.
    let again = || answers(&Server::start(&["--seed", "7"]), &request);
    let sequence = again();
    assert_eq!(sequence, again());
    assert!(!is_one(&sequence), "{sequence:?}");
    assert_eq!(sequence[0], answers(&first, &seeded)[0], "it begins with the seed that was given");
}

#[test]
fn messages_may_be_parts_and_a_developer_s() {
    let server = Server::start(&[]);
    let ask = |messages: Value| {
        let response =
            server.post(CHAT, &json!({"model": "tiny-chat", "messages": messages, "temperature": 0}));
        response.json()["choices"][0]["message"]["content"].clone()
    };
    let plain = ask(
        json!([{"role": "system", "content": "Always answer with Haiku"}, {"role": "user", "content": "I am going to Paris"}]),
    );
    let parts = ask(json!([
        {"role": "developer", "content": [{"type": "text", "text": "Always answer "}, {"type": "text", "text": "with Haiku"}]},
        {"role": "user", "content": "I am going to Paris", "name": "Eve"},
    ]));
    assert_eq!(plain, parts);
    // An answer comes back as it was given, with all its fields.
    let answer = server.post(CHAT, &chat("Hello")).json()["choices"][0]["message"].clone();
    let second = ask(
        json!([{"role": "user", "content": "Hello"}, answer, {"role": "user", "content": "Who are you?"}]),
    );
    assert!(second.as_str().unwrap().contains("tiny-chat"), "{second}");
}

#[test]
fn stop_strings_end_an_answer_and_logprobs_join_to_it() {
    let server = Server::start(&[]);
    let request = with(chat("Write a brief birthday message to John"), json!({"temperature": 0}));
    let whole = server.post(CHAT, &request).json()["choices"][0]["message"]["content"].clone();
    let whole = whole.as_str().unwrap();
    let stop = &whole[whole.len() / 2..whole.len() / 2 + 4];
    let expected = &whole[..whole.find(stop).unwrap()];
    for stop in [json!(stop), json!([stop, "never said"])] {
        let choice =
            server.post(CHAT, &with(request.clone(), json!({"stop": stop}))).json()["choices"][0].clone();
        assert_eq!(
            (&choice["message"]["content"], &choice["finish_reason"]),
            (&json!(expected), &json!("stop"))
        );
    }
    let request =
        with(request, json!({"logprobs": true, "top_logprobs": 3, "max_tokens": 12, "stream": true}));
    let events = server.post(CHAT, &request).events();
    let lists = events.iter().filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array());
    let tokens: Vec<&Value> = lists.flatten().collect();
    assert_eq!(tokens.len(), 12);
    let bytes = tokens.iter().flat_map(|token| token["bytes"].as_array().unwrap());
    let bytes: Vec<u8> = bytes.map(|byte| u8::try_from(byte.as_u64().unwrap()).unwrap()).collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), text_of(&events, 0));
    for token in tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(
            (top.len(), &top[0]["logprob"]),
            (3, &token["logprob"]),
            "temperature 0 takes the likeliest"
        );
    }
}

#[test]
fn texts_are_continued_from_strings_and_from_tokens() {
    let llama = tiny_chat().unwrap().build().unwrap();
    let server = Server::start(&[]);
    let texts = ["Once upon a time", "Grüße, 😀"];
    let options = CompletionOptions {
        max_gen_len: Some(9),
        echo: true,
        logprobs: true,
        top_logprobs: 2,
        ..Default::default()
    };
    let expected = llama.text_completion(&texts, &options).unwrap();
    let more = json!({"model": "tiny-chat", "max_tokens": 9, "echo": true, "logprobs": 2, "seed": 1});
    let response = server.post(COMPLETIONS, &with(json!({"prompt": texts}), more.clone()));
    assert_eq!(response.status, 200, "{}", response.body);
    let response = response.json();
    let tokens =
        texts.map(|text| llama.tokenizer().encode_prompt(text).iter().map(|id| id.0).collect::<Vec<_>>());
    let by_tokens = server.post(COMPLETIONS, &with(json!({"prompt": tokens}), more.clone())).json();
    let streamed =
        server.post(COMPLETIONS, &with(json!({"prompt": texts, "stream": true}), more.clone())).events();
    assert_eq!(by_tokens["choices"], response["choices"]);
    for (index, expected) in expected.iter().enumerate() {
        let choice = &response["choices"][index];
        assert_eq!(choice["text"], expected.generation);
        assert_eq!(text_of(&streamed, index), expected.generation);
        let logprobs = &choice["logprobs"];
        let all = logprobs["token_logprobs"].as_array().unwrap();
        assert!(all[0].is_null(), "of the first token nothing is known");
        let told: Vec<f32> = all[1..].iter().map(|p| p.as_f64().unwrap() as f32).collect();
        assert_eq!(told, expected.logprobs.as_ref().unwrap()[1..]);
        let offsets: Vec<u64> =
            logprobs["text_offset"].as_array().unwrap().iter().map(|at| at.as_u64().unwrap()).collect();
        assert!(offsets.is_sorted() && *offsets.last().unwrap() < expected.generation.chars().count() as u64);
        // Where a token is whole characters, it stands where it says.
        for (token, offset) in logprobs["tokens"].as_array().unwrap().iter().zip(offsets) {
            let token = token.as_str().unwrap();
            let rest: String = expected.generation.chars().skip(offset as usize).collect();
            assert!(
                rest.starts_with(token) || token == "<s>" || token.starts_with("bytes:"),
                "{token:?}, {rest:?}"
            );
        }
    }
    let one = server.post(COMPLETIONS, &json!({"model": "tiny-chat", "prompt": "Once", "n": 3})).json();
    assert_eq!(one["choices"].as_array().unwrap().len(), 3);
    assert_eq!(one["usage"]["prompt_tokens"], llama.tokenizer().encode_prompt("Once").len());
    // Scored, and not continued.
    let scored =
        json!({"model": "tiny-chat", "prompt": "Once", "max_tokens": 0, "echo": true, "logprobs": 0});
    let scored = server.post(COMPLETIONS, &scored).json();
    assert_eq!(
        (&scored["choices"][0]["text"], &scored["choices"][0]["finish_reason"]),
        (&json!("Once"), &json!("length"))
    );
}

/// A token that was told is among its alternatives, under its own text and with its own logprob, wherever it stands and however unlikely it is.
#[test]
fn alternatives_hold_the_token_that_was_told() {
    let server = Server::start(&[]);
    let flat = json!({"model": "tiny-chat", "temperature": 2, "top_p": 1, "max_tokens": 20, "logprobs": 4});
    for seed in 0..8 {
        let request = with(
            flat.clone(),
            json!({"prompt": ["Once upon", "Hello"], "seed": seed, "echo": seed % 2 == 0}),
        );
        for choice in server.post(COMPLETIONS, &request).json()["choices"].as_array().unwrap() {
            let list = |name: &str| choice["logprobs"][name].as_array().unwrap().clone();
            let top = list("top_logprobs");
            for ((token, p), top) in list("tokens").iter().zip(list("token_logprobs")).zip(&top) {
                assert_eq!(
                    if p.is_null() { &p } else { &top[token.as_str().unwrap()] },
                    &p,
                    "{token}: {top}"
                );
                assert!(top.as_object().is_none_or(|top| (1..=5).contains(&top.len())), "{top}");
            }
            let unknown = top.iter().filter(|top| top.is_null()).count();
            assert_eq!((unknown, top[0].is_null()), if seed % 2 == 0 { (1, true) } else { (0, false) });
        }
    }
    // What a chat begins with has no space before it, and neither have its alternatives.
    let first =
        with(chat("Hello"), json!({"temperature": 0, "logprobs": true, "top_logprobs": 20, "max_tokens": 1}));
    let first = server.post(CHAT, &first).json()["choices"][0]["logprobs"]["content"][0].clone();
    let top = first["top_logprobs"].as_array().unwrap();
    assert_eq!((&top[0]["token"], &top[0]["bytes"]), (&first["token"], &first["bytes"]));
    assert!(top.iter().all(|token| !token["token"].as_str().unwrap().starts_with(' ')), "{first}");
}

/// What an echo tells is no answer yet.
#[test]
fn an_echo_is_no_first_text() {
    let server = Server::start(&[]);
    let echo = json!({"model": "tiny-chat", "prompt": "Once", "max_tokens": 0, "echo": true});
    assert_eq!(server.post(COMPLETIONS, &echo).status, 200);
    assert_eq!(server.metric("serve_time_to_first_text_seconds_count"), 0.0);
    let continued = with(echo, json!({"max_tokens": 4, "temperature": 0}));
    assert!(server.post(COMPLETIONS, &continued).json()["choices"][0]["text"].as_str().unwrap().len() > 4);
    assert_eq!(server.metric("serve_time_to_first_text_seconds_count"), 1.0);
    assert_eq!(server.ended("complete"), 2.0);
}

#[test]
fn there_are_models_a_health_metrics_and_a_page() {
    let server = Server::start(&["--model_name", "org/llama"]);
    let list = server.get("/v1/models").json();
    assert_eq!((&list["object"], &list["data"][0]["id"]), (&json!("list"), &json!("org/llama")));
    for path in ["/v1/models/org/llama", "/v1/models/org%2Fllama"] {
        let model = server.get(path).json();
        assert_eq!((&model["object"], &model["max_model_len"]), (&json!("model"), &json!(512)));
    }
    assert_eq!(server.get("/health").json(), json!({"status": "ok"}));
    let answered = server.post(CHAT, &with(chat("Hello"), json!({"model": "org/llama"})));
    assert_eq!(answered.status, 200);
    assert_eq!(server.metric("serve_answer_seconds_count"), 1.0);
    assert_eq!(server.metric("serve_time_to_first_text_seconds_bucket{le=\"+Inf\"}"), 1.0);
    assert_eq!(server.metric("serve_responses_total{route=\"/v1/chat/completions\",status=\"200\"}"), 1.0);
    let tokens = answered.json()["usage"]["completion_tokens"].as_f64().unwrap();
    assert!(server.metric("llama_generated_tokens_total") >= tokens);
    let page = server.get("/");
    assert!(page.head.contains("content-type: text/html"));
    let nonce = page.head.split("'nonce-").nth(1).unwrap().split('\'').next().unwrap();
    assert_eq!(page.body.matches(&format!("nonce=\"{nonce}\"")).count(), 2, "the style and the script");
    let policy = page.head.lines().find(|line| line.starts_with("content-security-policy")).unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"));
    assert!(!page.body.contains("://"), "nothing is loaded from elsewhere");
    assert_ne!(server.get("/").head, page.head, "a nonce is used once");
}
