//! A request to `/v1/completions`.

use llama_core::{GenerationOptions, TokenId};
use serde::Deserialize;

use super::fields::Fields;
use super::{BadRequest, Prompts, Request, options};

/// OpenAI's default for texts.
const MAX_TOKENS: u32 = 16;

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected a string, a list of strings, a list of token ids, or a list of such lists"
)]
enum Prompt {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    ManyTokens(Vec<Vec<u32>>),
}

/// Reads a request; what it leaves open is as in `defaults`.
pub(crate) fn completion(body: &[u8], defaults: &GenerationOptions) -> Result<Request, BadRequest> {
    let mut fields = Fields::parse(body)?;
    let tokens = |ids: Vec<u32>| ids.into_iter().map(TokenId).collect();
    let prompts = match fields.require("prompt")? {
        Prompt::Text(text) => Prompts::Texts(vec![text]),
        Prompt::Texts(texts) => Prompts::Texts(texts),
        Prompt::Tokens(ids) => Prompts::Tokens(vec![tokens(ids)]),
        Prompt::ManyTokens(lists) => Prompts::Tokens(lists.into_iter().map(tokens).collect()),
    };
    if prompts.len() == 0 {
        return Err(BadRequest::new("prompt", "`prompt` is an empty list"));
    }
    let max_tokens = fields.take("max_tokens")?.unwrap_or(MAX_TOKENS);
    let echo = fields.take("echo")?.unwrap_or(false);
    if max_tokens == 0 && !echo {
        return Err(BadRequest::new("max_tokens", "`max_tokens` is 0, expected at least 1 without `echo`"));
    }
    let logprobs: Option<usize> = fields.take_within("logprobs", 0..=20)?;
    let options = GenerationOptions {
        max_gen_len: Some(max_tokens as usize),
        echo,
        logprobs: logprobs.is_some(),
        top_logprobs: logprobs.unwrap_or(0),
        ..defaults.clone()
    };
    options::request(fields, prompts, options)
}
