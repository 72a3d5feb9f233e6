//! Whatever comes, it is a request or an error that says what is wrong.

use llama_core::GenerationOptions;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{BadRequest, Request, chat, completion};

const FIELDS: [&str; 28] = [
    "messages",
    "prompt",
    "model",
    "n",
    "stream",
    "stream_options",
    "stop",
    "seed",
    "temperature",
    "top_p",
    "max_tokens",
    "max_completion_tokens",
    "logprobs",
    "top_logprobs",
    "echo",
    "logit_bias",
    "presence_penalty",
    "frequency_penalty",
    "top_k",
    "min_p",
    "repetition_penalty",
    "tools",
    "response_format",
    "role",
    "content",
    "type",
    "text",
    "other",
];

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3i64..30).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "(user|system|text|none|[a-z\\[/\\]<>INST]{0,8}|\\PC{0,4})".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            fields(inner).prop_map(Value::Object),
        ]
    })
}

fn fields(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Map<String, Value>> {
    prop::collection::vec((prop::sample::select(&FIELDS[..]), value), 0..5)
        .prop_map(|fields| fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// Reads it as both kinds.
fn both(body: &[u8]) -> [Result<Request, BadRequest>; 2] {
    let defaults = GenerationOptions::default();
    [chat(body, &defaults), completion(body, &defaults)]
}

fn check(body: &[u8]) {
    for error in both(body).into_iter().filter_map(Result::err) {
        assert!(!error.message.is_empty());
        assert!(error.param.is_none_or(|param| !param.is_empty()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        check(&bytes);
    }

    #[test]
    fn any_json_is_read_or_refused(value in value()) {
        check(value.to_string().as_bytes());
    }

    /// A request with a field more or another value is one, or the error names that field.
    #[test]
    fn a_changed_field_is_read_or_named(fields in fields(value())) {
        let whole = json!({"model": "m", "messages": [{"role": "user", "content": "x"}]});
        let mut changed = whole.as_object().cloned().unwrap_or_default();
        changed.extend(fields.clone());
        let body = Value::Object(changed).to_string();
        if let Err(BadRequest { message, param, .. }) = chat(body.as_bytes(), &GenerationOptions::default()) {
            let param = param.unwrap();
            let top = param.split(['.', '[']).next().unwrap_or_default();
            prop_assert!(fields.contains_key(top), "{param}: {message}: {body}");
        }
    }
}

#[test]
fn a_field_that_is_there_twice_is_refused_wherever_it_is() {
    let fields = [
        r#""n": 1, "n": 2"#,
        r#""n": 1, "\u006e": 1"#,
        r#""logit_bias": {"5": 1, "5": 2}"#,
        r#""stream_options": {"include_usage": true, "include_usage": true}"#,
    ];
    let messages = r#""messages": [{"role": "user", "content": "x"}]"#;
    let bodies = fields.iter().map(|fields| format!(r#"{{"model": "m", {messages}, {fields}}}"#));
    let message = r#"{"model": "m", "messages": [{"role": "system", "role": "user", "content": "x"}]}"#;
    for body in bodies.chain([message.to_owned()]) {
        for error in both(body.as_bytes()).map(Result::unwrap_err) {
            assert!(error.message.contains("is there twice"), "{body}: {error:?}");
        }
    }
}

/// One token has one bias, however its id is written.
#[test]
fn a_token_s_bias_is_there_once() {
    let body =
        r#"{"model": "m", "messages": [{"role": "user", "content": "x"}], "logit_bias": {"5": 1, "05": 2}}"#;
    let error = chat(body.as_bytes(), &GenerationOptions::default()).unwrap_err();
    assert_eq!(error.param.as_deref(), Some("logit_bias"));
}
