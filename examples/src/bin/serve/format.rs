//! [`Format`]: answers as OpenAI's JSON, whole or in chunks.
//!
//! It is written as it is read, field by field: logprobs are many times the text, and a second copy of them as a tree would be many times that.

use std::time::{SystemTime, UNIX_EPOCH};

use llama_core::tokenizer::Tokenizer;
use serde::ser::{Serialize, SerializeMap, SerializeStruct, Serializer};

use crate::answer::{Delta, TotalUsage};
use crate::app::App;
use crate::request::Request;
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
    /// Whether every chunk has the field, `null` in all but the last.
    usage: bool,
    tokenizer: Tokenizer,
}

#[derive(serde::Serialize)]
struct Envelope<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: Option<()>,
    choices: &'a [Choice<'a>],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<UsageFields>>,
}

#[derive(serde::Serialize)]
struct Choice<'a> {
    index: usize,
    #[serde(flatten)]
    said: Said<'a>,
    logprobs: Option<Logprobs<'a>>,
    finish_reason: Option<&'static str>,
}

/// What was said, under the name that its place has.
#[derive(serde::Serialize)]
#[serde(rename_all = "snake_case")]
enum Said<'a> {
    Message(Message<'a>),
    Delta(More<'a>),
    Text(&'a str),
}

#[derive(serde::Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<()>,
}

#[derive(serde::Serialize)]
#[serde(untagged)]
enum More<'a> {
    Opening(Message<'a>),
    Content { content: &'a str },
    Nothing {},
}

#[derive(serde::Serialize)]
struct UsageFields {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: UsageDetails,
}

#[derive(serde::Serialize)]
struct UsageDetails {
    cached_tokens: usize,
}

impl Format {
    pub(crate) fn new(kind: Kind, app: &App, request: &Request) -> Self {
        let id = match kind {
            Kind::Chat => format!("chatcmpl-{}", app.id()),
            Kind::Completion => format!("cmpl-{}", app.id()),
        };
        Self {
            kind,
            id,
            created: unix_time(),
            model: app.model.clone(),
            logprobs: request.options.logprobs,
            usage: request.stream.is_some_and(|streaming| streaming.include_usage),
            tokenizer: app.llama.tokenizer().clone(),
        }
    }

    /// The response with all answers.
    pub(crate) fn whole(&self, answers: &[Delta], usage: TotalUsage) -> String {
        let choices = answers.iter().enumerate().map(|(index, answer)| Choice {
            index,
            said: match self.kind {
                Kind::Chat => Said::Message(message(&answer.text)),
                Kind::Completion => Said::Text(&answer.text),
            },
            logprobs: self.logprobs(&answer.tokens),
            finish_reason: answer.finish_reason,
        });
        let choices: Vec<Choice<'_>> = choices.collect();
        let object = match self.kind {
            Kind::Chat => "chat.completion",
            Kind::Completion => "text_completion",
        };
        self.envelope(object, &choices, Some(Some(usage.into())))
    }

    /// The chunk that opens an answer of the assistant's; texts have none.
    pub(crate) fn opening(&self, index: usize) -> Option<String> {
        let said = Said::Delta(More::Opening(message("")));
        (self.kind == Kind::Chat).then(|| self.chunk(index, said, None, None))
    }

    /// The chunks with more of an answer: its text, and its end.
    pub(crate) fn chunks(&self, index: usize, delta: &Delta) -> Vec<String> {
        let Delta { text, tokens, finish_reason } = delta;
        let mut chunks = Vec::new();
        if !text.is_empty() || !tokens.is_empty() {
            let said = match self.kind {
                Kind::Chat => Said::Delta(More::Content { content: text }),
                Kind::Completion => Said::Text(text),
            };
            chunks.push(self.chunk(index, said, self.logprobs(tokens), None));
        }
        if finish_reason.is_some() {
            let said = match self.kind {
                Kind::Chat => Said::Delta(More::Nothing {}),
                Kind::Completion => Said::Text(""),
            };
            chunks.push(self.chunk(index, said, None, *finish_reason));
        }
        chunks
    }

    /// The last chunk, where it was asked for.
    pub(crate) fn usage(&self, usage: TotalUsage) -> Option<String> {
        self.usage.then(|| self.envelope(self.object_of_chunks(), &[], Some(Some(usage.into()))))
    }

    fn chunk(
        &self,
        index: usize,
        said: Said<'_>,
        logprobs: Option<Logprobs<'_>>,
        finish_reason: Option<&'static str>,
    ) -> String {
        let choice = Choice { index, said, logprobs, finish_reason };
        self.envelope(self.object_of_chunks(), &[choice], self.usage.then_some(None))
    }

    fn object_of_chunks(&self) -> &'static str {
        match self.kind {
            Kind::Chat => "chat.completion.chunk",
            Kind::Completion => "text_completion",
        }
    }

    fn envelope(
        &self,
        object: &'static str,
        choices: &[Choice<'_>],
        usage: Option<Option<UsageFields>>,
    ) -> String {
        let Self { id, created, model, .. } = self;
        let envelope =
            Envelope { id, object, created: *created, model, system_fingerprint: None, choices, usage };
        // Text, numbers, and lists and objects of them: nothing that JSON does not have.
        serde_json::to_string(&envelope).unwrap_or_default()
    }

    fn logprobs<'a>(&'a self, tokens: &'a [Token]) -> Option<Logprobs<'a>> {
        self.logprobs.then_some(Logprobs { kind: self.kind, tokens, tokenizer: &self.tokenizer })
    }
}

fn message(content: &str) -> Message<'_> {
    Message { role: "assistant", content, refusal: None }
}

impl From<TotalUsage> for UsageFields {
    fn from(TotalUsage { prompt_tokens, cached_tokens, completion_tokens }: TotalUsage) -> Self {
        let total_tokens = prompt_tokens + completion_tokens;
        let prompt_tokens_details = UsageDetails { cached_tokens };
        Self { prompt_tokens, completion_tokens, total_tokens, prompt_tokens_details }
    }
}

/// The tokens of an answer, each written down when its turn comes.
struct Logprobs<'a> {
    kind: Kind,
    tokens: &'a [Token],
    tokenizer: &'a Tokenizer,
}

impl Serialize for Logprobs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { kind, tokens, tokenizer } = *self;
        match kind {
            Kind::Chat => {
                let mut fields = serializer.serialize_struct("Logprobs", 2)?;
                let content = tokens.iter().map(|token| ChatToken { token, tokenizer });
                fields.serialize_field("content", &List(content))?;
                fields.serialize_field("refusal", &())?;
                fields.end()
            }
            Kind::Completion => {
                let mut fields = serializer.serialize_struct("Logprobs", 4)?;
                let texts = tokens.iter().map(|token| token.surface(tokenizer, token.id).text);
                fields.serialize_field("tokens", &List(texts))?;
                fields.serialize_field("token_logprobs", &List(tokens.iter().map(|token| token.logprob)))?;
                let top = tokens
                    .iter()
                    .map(|token| token.logprob.map(|logprob| TopByText { token, logprob, tokenizer }));
                fields.serialize_field("top_logprobs", &List(top))?;
                fields.serialize_field("text_offset", &List(tokens.iter().map(|token| token.offset)))?;
                fields.end()
            }
        }
    }
}

/// A token of a chat's answer.
struct ChatToken<'a> {
    token: &'a Token,
    tokenizer: &'a Tokenizer,
}

#[derive(serde::Serialize)]
struct ChatChoice<T> {
    token: String,
    logprob: Option<f32>,
    bytes: Option<Vec<u8>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_logprobs: Option<T>,
}

impl<T> ChatChoice<T> {
    fn new(Surface { text, bytes }: Surface, logprob: Option<f32>, top_logprobs: Option<T>) -> Self {
        Self { token: text, logprob, bytes, top_logprobs }
    }
}

impl Serialize for ChatToken<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { token, tokenizer } = *self;
        let top = token
            .top
            .iter()
            .map(|(id, logprob)| ChatChoice::<()>::new(token.surface(tokenizer, *id), Some(*logprob), None));
        ChatChoice::new(token.surface(tokenizer, token.id), token.logprob, Some(List(top)))
            .serialize(serializer)
    }
}

/// The likeliest tokens at a place by their text, the one that was told among them; of several with one text, that one or the likeliest.
struct TopByText<'a> {
    token: &'a Token,
    logprob: f32,
    tokenizer: &'a Tokenizer,
}

impl Serialize for TopByText<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { token, logprob, tokenizer } = *self;
        let mut map = serializer.serialize_map(None)?;
        let mut told = Vec::with_capacity(token.top.len() + 1);
        for (id, logprob) in std::iter::once(&(token.id, logprob)).chain(&token.top) {
            let Surface { text, .. } = token.surface(tokenizer, *id);
            if !told.contains(&text) {
                map.serialize_entry(&text, logprob)?;
                told.push(text);
            }
        }
        map.end()
    }
}

/// What an iterator gives.
struct List<I>(I);

impl<I: Iterator<Item: Serialize> + Clone> Serialize for List<I> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.clone())
    }
}

pub(crate) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
