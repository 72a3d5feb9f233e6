//! What a client asks for, read from JSON: OpenAI's requests as prompts and options of llama-core's.
//!
//! Nothing here knows HTTP. Fields are taken one by one ([`fields::Fields`]), so that an error names the field, and what nobody has taken is
//! a field that does not exist. As OpenAI does it: `null` asks for nothing, a field that does not exist is an error, and so is one that
//! would change the answer and cannot be had; what only describes the caller (`user`, `metadata` …) is let pass. Nothing is said twice: of two
//! fields with one name, or two names for one thing, neither counts silently.

mod chat;
mod completion;
mod fields;
mod json;
mod options;
#[cfg(test)]
mod tests;

pub(crate) use chat::chat;
pub(crate) use completion::completion;
use llama_core::tokenizer::Tokenizer;
use llama_core::{Dialog, GenerationOptions, TokenId};

/// A request that can be answered.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Request {
    pub(crate) model: String,
    pub(crate) prompts: Prompts,
    /// Answers to each prompt.
    pub(crate) n: usize,
    /// `None`: the whole answer at once.
    pub(crate) stream: Option<Streaming>,
    pub(crate) options: GenerationOptions,
}

/// What is to be answered or continued.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Prompts {
    Dialog(Dialog),
    Texts(Vec<String>),
    Tokens(Vec<Vec<TokenId>>),
}

/// How an answer is streamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Streaming {
    /// A last chunk has the usage.
    pub(crate) include_usage: bool,
}

/// Why a request cannot be answered: the client is to change it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BadRequest {
    pub(crate) message: String,
    /// The field at fault, as a path: `messages[0].content`.
    pub(crate) param: Option<String>,
    pub(crate) code: Option<&'static str>,
}

impl Request {
    /// Answers that it asks for.
    pub(crate) fn n_answers(&self) -> usize {
        self.prompts.len().saturating_mul(self.n)
    }

    /// Log-probabilities that it may be answered with at most, in a context of so many tokens.
    pub(crate) fn max_logprobs(&self, max_seq_len: usize) -> usize {
        let GenerationOptions { logprobs, top_logprobs, echo, max_gen_len, .. } = self.options;
        let tokens = if echo { max_seq_len } else { max_gen_len.unwrap_or(max_seq_len).min(max_seq_len) };
        let each = if logprobs { top_logprobs.saturating_add(1) } else { 0 };
        self.n_answers().saturating_mul(tokens).saturating_mul(each)
    }

    /// Whether an answer begins with its prompt's text, for each prompt.
    pub(crate) fn echoes(&self, tokenizer: &Tokenizer) -> Vec<bool> {
        let has_text = |list: &Vec<TokenId>| {
            let told = list.split(|id| *id == tokenizer.eos_id()).next().unwrap_or_default();
            tokenizer.decode(told).is_ok_and(|text| !text.is_empty())
        };
        let echo = |has_text: bool| self.options.echo && has_text;
        match &self.prompts {
            Prompts::Dialog(_) => vec![false],
            Prompts::Texts(texts) => texts.iter().map(|text| echo(!text.is_empty())).collect(),
            Prompts::Tokens(lists) => lists.iter().map(|list| echo(has_text(list))).collect(),
        }
    }
}

impl BadRequest {
    pub(crate) fn new(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { message: message.into(), param: Some(param.into()), code: None }
    }

    pub(crate) fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// A field that would change the answer, and cannot be had.
    fn unsupported(param: impl Into<String>) -> Self {
        let param = param.into();
        let message = format!("`{param}` is not supported by this server");
        Self::new(param, message).with_code("unsupported_parameter")
    }
}

impl Prompts {
    /// Where in the request one of them stands.
    pub(crate) fn path(&self, place: usize) -> String {
        match self {
            Self::Dialog(_) => "messages".to_owned(),
            _ if self.len() == 1 => "prompt".to_owned(),
            _ => format!("prompt[{place}]"),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Dialog(_) => 1,
            Self::Texts(texts) => texts.len(),
            Self::Tokens(tokens) => tokens.len(),
        }
    }
}
