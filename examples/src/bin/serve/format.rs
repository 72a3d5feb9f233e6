//! [`Format`]: answers as OpenAI's JSON, whole or in chunks.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::answer::{Delta, TotalUsage};
use crate::token::{Surface, Token};

/// Which of the two routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Chat,
    Completion,
}

/// What all chunks of an answer have in common.
#[derive(Debug)]
pub(crate) struct Format {
    kind: Kind,
    id: String,
    created: u64,
    model: String,
    logprobs: bool,
}

impl Format {
    pub(crate) fn new(kind: Kind, id: &str, model: String, logprobs: bool) -> Self {
        let id = match kind {
            Kind::Chat => format!("chatcmpl-{id}"),
            Kind::Completion => format!("cmpl-{id}"),
        };
        Self { kind, id, created: unix_time(), model, logprobs }
    }

    /// The response with all answers.
    pub(crate) fn whole(&self, answers: Vec<Delta>, usage: TotalUsage) -> Value {
        let choices = answers.into_iter().enumerate().map(|(index, answer)| {
            let logprobs = self.logprobs(&answer.tokens);
            let finish_reason = answer.finish_reason;
            match self.kind {
                Kind::Chat => {
                    let message = json!({"role": "assistant", "content": answer.text, "refusal": null});
                    json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish_reason})
                }
                Kind::Completion => {
                    json!({"index": index, "text": answer.text, "logprobs": logprobs, "finish_reason": finish_reason})
                }
            }
        });
        let choices: Vec<Value> = choices.collect();
        let object = match self.kind {
            Kind::Chat => "chat.completion",
            Kind::Completion => "text_completion",
        };
        let mut response = self.envelope(object, choices);
        response["usage"] = usage_json(usage);
        response
    }

    /// The chunk that opens an answer of the assistant's; texts have none.
    pub(crate) fn opening(&self, index: usize) -> Option<Value> {
        let delta = json!({"role": "assistant", "content": "", "refusal": null});
        (self.kind == Kind::Chat).then(|| self.chat_chunk(index, &delta, Value::Null, None))
    }

    /// The chunks with more of an answer: its text, and its end.
    pub(crate) fn chunks(&self, index: usize, delta: &Delta) -> Vec<Value> {
        let Delta { text, tokens, finish_reason } = delta;
        let mut chunks = Vec::new();
        if !text.is_empty() || !tokens.is_empty() {
            let logprobs = self.logprobs(tokens);
            chunks.push(match self.kind {
                Kind::Chat => self.chat_chunk(index, &json!({"content": text}), logprobs, None),
                Kind::Completion => self.text_chunk(index, text, logprobs, None),
            });
        }
        if finish_reason.is_some() {
            chunks.push(match self.kind {
                Kind::Chat => self.chat_chunk(index, &json!({}), Value::Null, *finish_reason),
                Kind::Completion => self.text_chunk(index, "", Value::Null, *finish_reason),
            });
        }
        chunks
    }

    /// The last chunk, where it was asked for.
    pub(crate) fn usage(&self, usage: TotalUsage) -> Value {
        let mut chunk = self.chunk(Vec::new());
        chunk["usage"] = usage_json(usage);
        chunk
    }

    fn chat_chunk(&self, index: usize, delta: &Value, logprobs: Value, finish: Option<&str>) -> Value {
        self.chunk(vec![
            json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}),
        ])
    }

    fn text_chunk(&self, index: usize, text: &str, logprobs: Value, finish: Option<&str>) -> Value {
        self.chunk(vec![json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish})])
    }

    fn chunk(&self, choices: Vec<Value>) -> Value {
        let object = match self.kind {
            Kind::Chat => "chat.completion.chunk",
            Kind::Completion => "text_completion",
        };
        self.envelope(object, choices)
    }

    fn envelope(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": null,
            "choices": choices,
        })
    }

    fn logprobs(&self, tokens: &[Token]) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        match self.kind {
            Kind::Chat => {
                let content = tokens.iter().map(|token| {
                    let top: Vec<_> =
                        token.top.iter().map(|(surface, p)| choice(surface, Some(*p))).collect();
                    let mut entry = choice(&token.surface, token.logprob);
                    entry["top_logprobs"] = Value::Array(top);
                    entry
                });
                json!({"content": content.collect::<Vec<_>>(), "refusal": null})
            }
            Kind::Completion => {
                let top = |token: &Token| {
                    let pairs = token.top.iter().map(|(surface, p)| (surface.text.clone(), json!(p)));
                    if token.top.is_empty() { Value::Null } else { Value::Object(pairs.collect()) }
                };
                json!({
                    "tokens": tokens.iter().map(|token| &*token.surface.text).collect::<Vec<_>>(),
                    "token_logprobs": tokens.iter().map(|token| token.logprob).collect::<Vec<_>>(),
                    "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
                    "text_offset": tokens.iter().map(|token| token.offset).collect::<Vec<_>>(),
                })
            }
        }
    }
}

pub(crate) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn choice(surface: &Surface, logprob: Option<f32>) -> Value {
    json!({"token": surface.text, "logprob": logprob, "bytes": surface.bytes})
}

fn usage_json(usage: TotalUsage) -> Value {
    let TotalUsage { prompt_tokens, cached_tokens, completion_tokens } = usage;
    json!({
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    })
}
