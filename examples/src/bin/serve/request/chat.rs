//! A request to `/v1/chat/completions`.

use llama_core::{Dialog, DialogError, GenerationOptions, Message, Role};
use serde_json::Value;

use super::fields::{Fields, kind};
use super::{BadRequest, Prompts, Request, options};

/// Reads a request; what it leaves open is as in `defaults`.
pub(crate) fn chat(body: &[u8], defaults: &GenerationOptions) -> Result<Request, BadRequest> {
    let mut fields = Fields::parse(body)?;
    let messages: Vec<Value> = fields.require("messages")?;
    let dialog = dialog(messages)?;
    let max_tokens = fields.take_within("max_tokens", 1..=u32::MAX)?;
    let max_completion_tokens = fields.take_within("max_completion_tokens", 1..=u32::MAX)?;
    if max_tokens.is_some() && max_completion_tokens.is_some() {
        let message = "`max_tokens` is the older name of `max_completion_tokens`: send one of them";
        return Err(BadRequest::new("max_tokens", message));
    }
    let logprobs = fields.take("logprobs")?.unwrap_or(false);
    let top_logprobs = fields.take_within("top_logprobs", 0..=20)?.unwrap_or(0);
    if top_logprobs > 0 && !logprobs {
        return Err(BadRequest::new("top_logprobs", "`top_logprobs` is for requests with `logprobs` alone"));
    }
    let options = GenerationOptions {
        max_gen_len: max_completion_tokens.or(max_tokens).map(|n| n as usize).or(defaults.max_gen_len),
        logprobs,
        top_logprobs,
        ..defaults.clone()
    };
    options::request(fields, Prompts::Dialog(dialog), options)
}

fn dialog(messages: Vec<Value>) -> Result<Dialog, BadRequest> {
    let mut read = Vec::with_capacity(messages.len());
    for (index, value) in messages.into_iter().enumerate() {
        let mut fields = Fields::of(value, format!("messages[{index}]"))?;
        let role: String = fields.require("role")?;
        let path = fields.path("role");
        let role = match &*role {
            "developer" => Role::System, // its newer name
            name => Role::from_name(name).ok_or_else(|| {
                let message = format!("`{path}` is {name:?}, expected system, developer, user or assistant");
                BadRequest::new(path, message)
            })?,
        };
        // Of an answer that was given, as clients send it back.
        for name in ["refusal", "annotations", "tool_calls", "function_call", "audio"] {
            fields.refuse(name, |value| value.as_array().is_some_and(Vec::is_empty))?;
        }
        // The format has no place for it.
        fields.ignore(&["name"]);
        let content = content(&mut fields)?;
        fields.finish()?;
        let message = Message::new(role, content);
        if let Some(tag) = Dialog::new(&*message.content).special_tag() {
            let path = format!("messages[{index}].content");
            let message =
                format!("`{path}` holds {}, a tag of the chat format, at byte {}", tag.tag, tag.offset);
            return Err(BadRequest::new(path, message).with_code("special_tag"));
        }
        read.push(message);
    }
    Dialog::try_from(read).map_err(|error| {
        let param = match error.index() {
            Some(index) if !matches!(error, DialogError::LastNotUser { .. }) => {
                format!("messages[{index}].role")
            }
            _ => "messages".to_owned(),
        };
        BadRequest::new(param, error.to_string())
    })
}

/// A text, or a list of parts that are texts.
fn content(fields: &mut Fields) -> Result<String, BadRequest> {
    let path = fields.path("content");
    let parts = match fields.require("content")? {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => {
            let message = format!("`{path}` is {}, expected a string or a list of parts", kind(&other));
            return Err(BadRequest::new(path, message));
        }
    };
    let mut text = String::new();
    for (index, part) in parts.into_iter().enumerate() {
        let mut part = Fields::of(part, format!("{path}[{index}]"))?;
        let kind: String = part.require("type")?;
        if kind != "text" {
            let path = part.path("type");
            let message = format!("`{path}` is {kind:?}: this model reads text alone");
            return Err(BadRequest::new(path, message).with_code("unsupported_parameter"));
        }
        text.push_str(&part.require::<String>("text")?);
        part.finish()?;
    }
    Ok(text)
}
