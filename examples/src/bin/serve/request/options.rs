//! What both kinds of request have in common: the model, how to sample, and how to be answered.

use std::collections::BTreeMap;

use llama_core::{GenerationOptions, TokenId};
use serde::Deserialize;
use serde_json::{Value, json};

use super::fields::Fields;
use super::{BadRequest, Prompts, Request, Streaming};

/// OpenAI's limits.
const MAX_ANSWERS: usize = 128;
const MAX_STOP_STRINGS: usize = 4;

/// Fields that tell who asks, or how OpenAI's own service is to be run; an answer does not depend on them.
const WITHOUT_EFFECT: [&str; 7] = [
    "user",
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
];

/// Fields that an answer would depend on.
const UNSUPPORTED: [&str; 13] = [
    "audio",
    "best_of",
    "function_call",
    "functions",
    "modalities",
    "prediction",
    "reasoning_effort",
    "response_format",
    "store",
    "suffix",
    "tool_choice",
    "tools",
    "web_search_options",
];

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
enum Stop {
    One(String),
    Many(Vec<String>),
}

/// The request for these prompts, from the fields that are left.
pub(super) fn request(
    mut fields: Fields,
    prompts: Prompts,
    options: GenerationOptions,
) -> Result<Request, BadRequest> {
    let model = fields.require("model")?;
    let n = fields.take_within("n", 1..=MAX_ANSWERS)?.unwrap_or(1);
    let stream = streaming(&mut fields)?;
    let options = sampling(&mut fields, options)?;
    for name in UNSUPPORTED {
        fields.refuse(name, |value| asks_for_nothing(name, value, n))?;
    }
    fields.ignore(&WITHOUT_EFFECT);
    fields.finish()?;
    Ok(Request { model, prompts, n, stream, options })
}

fn streaming(fields: &mut Fields) -> Result<Option<Streaming>, BadRequest> {
    let stream = fields.take("stream")?.unwrap_or(false);
    let Some(options) = fields.take_value("stream_options") else {
        return Ok(stream.then_some(Streaming { include_usage: false }));
    };
    if !stream {
        return Err(BadRequest::new(
            "stream_options",
            "`stream_options` is for requests with `stream` alone",
        ));
    }
    let mut options = Fields::of(options, "stream_options".to_owned())?;
    let include_usage = options.take("include_usage")?.unwrap_or(false);
    options.ignore(&["include_obfuscation"]);
    options.finish()?;
    Ok(Some(Streaming { include_usage }))
}

/// The defaults, with what the request says of them.
fn sampling(fields: &mut Fields, defaults: GenerationOptions) -> Result<GenerationOptions, BadRequest> {
    let stop = match fields.take("stop")? {
        None => Vec::new(),
        Some(Stop::One(text)) => vec![text],
        Some(Stop::Many(texts)) => texts,
    };
    if stop.len() > MAX_STOP_STRINGS {
        let message = format!("`stop` has {} texts, expected at most {MAX_STOP_STRINGS}", stop.len());
        return Err(BadRequest::new("stop", message));
    }
    // A negative seed is as good a name of a random stream as any other.
    let seed = fields.take::<i64>("seed")?.map(i64::cast_unsigned);
    let bias: BTreeMap<u32, f32> = fields.take("logit_bias")?.unwrap_or_default();
    if let Some((id, bias)) = bias.iter().find(|(_, bias)| !(-100.0..=100.0).contains(*bias)) {
        let message = format!("`logit_bias` of token {id} is {bias}, expected -100 to 100");
        return Err(BadRequest::new("logit_bias", message));
    }
    Ok(GenerationOptions {
        temperature: fields.take_within("temperature", 0.0..=2.0)?.unwrap_or(defaults.temperature),
        top_p: fields.take_within("top_p", 0.0..=1.0)?.unwrap_or(defaults.top_p),
        frequency_penalty: fields.take_within("frequency_penalty", -2.0..=2.0)?.unwrap_or_default(),
        presence_penalty: fields.take_within("presence_penalty", -2.0..=2.0)?.unwrap_or_default(),
        // Not OpenAI's, but what its clients send to servers of open models.
        top_k: fields.take("top_k")?,
        min_p: fields.take("min_p")?.unwrap_or(defaults.min_p),
        repetition_penalty: fields.take("repetition_penalty")?.unwrap_or(defaults.repetition_penalty),
        logit_bias: bias.into_iter().map(|(id, bias)| (TokenId(id), bias)).collect(),
        stop,
        seed,
        ..defaults
    })
}

/// Whether a field that is not supported says what is the case without it.
fn asks_for_nothing(name: &str, value: &Value, n: usize) -> bool {
    match name {
        "best_of" => *value == json!(n),
        "modalities" => *value == json!(["text"]),
        "response_format" => *value == json!({"type": "text"}),
        "store" => *value == json!(false),
        "suffix" => *value == json!(""),
        "tool_choice" | "function_call" => *value == json!("none"),
        "tools" | "functions" => *value == json!([]),
        _ => false,
    }
}
