//! How to generate, and what comes of it: the reference's arguments and result types, and what an application asks beyond them.

use std::collections::BTreeMap;
use std::time::Duration;

use llama_backend::TokenId;
use serde::{Deserialize, Serialize};

use crate::generate::{CancelToken, FinishReason, Metrics, Usage, WhenFull};
use crate::safety::Judgement;
use crate::sampler::SamplingOptions;
use crate::{Error, Message};

/// Likeliest tokens that may be asked for at each place: OpenAI's limit. It bounds what an answer takes that nobody reads.
const MAX_TOP_LOGPROBS: usize = 20;

/// How to generate: the reference's arguments and defaults first, then others that change nothing by default.
///
/// ```
/// use llama_core::GenerationOptions;
///
/// let options = GenerationOptions { max_gen_len: Some(64), stop: vec!["\n".into()], ..Default::default() };
/// assert_eq!((options.temperature, options.top_p, options.echo), (0.6, 0.9, false));
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerationOptions {
    /// Divides the logits before sampling; at 0 and below, the most probable token is taken. Default 0.6.
    pub temperature: f64,
    /// Samples from the smallest set of tokens whose probability exceeds this (nucleus sampling). Default 0.9.
    pub top_p: f64,
    /// New tokens at most; `None` (the default): as many as the context holds. 0 scores the prompt.
    pub max_gen_len: Option<usize>,
    /// Return log-probabilities: the model's own, whatever temperature, penalties and filters make of them. Default false.
    pub logprobs: bool,
    /// Return the prompt in front of what was generated. Default false. Not for dialogs.
    pub echo: bool,
    /// Seed of this call's sampling; `None`: the model's ([`LlamaBuilder::seed`](crate::LlamaBuilder::seed)). The same
    /// prompt with the same seed gives the same answer, alone or in a batch.
    pub seed: Option<u64>,
    /// Ends the answer where one of these texts comes, wherever tokens begin and end; the answer is what stands before it. Default: none.
    /// A token that reaches into a stop string is not among the answer's tokens.
    pub stop: Vec<String>,
    /// As [`SamplingOptions::top_k`]. Default: none.
    pub top_k: Option<usize>,
    /// As [`SamplingOptions::min_p`]. Default 0: none.
    pub min_p: f64,
    /// As [`SamplingOptions::repetition_penalty`]. Default 1: none.
    pub repetition_penalty: f64,
    /// As [`SamplingOptions::frequency_penalty`]. Default 0: none.
    pub frequency_penalty: f64,
    /// As [`SamplingOptions::presence_penalty`]. Default 0: none.
    pub presence_penalty: f64,
    /// As [`SamplingOptions::logit_bias`]. Default: none.
    #[serde(with = "bias")]
    pub logit_bias: BTreeMap<TokenId, f32>,
    /// Beside each token's log-probability, those of so many of the likeliest tokens there: up to 20, with `logprobs` only. Default 0.
    pub top_logprobs: usize,
    /// Ends the call after this time, which runs from its beginning, waiting included. Default: none.
    pub deadline: Option<Duration>,
    /// Ends the call when it is cancelled. Default: none.
    #[serde(skip)]
    pub cancel: Option<CancelToken>,
    /// What to do when the queue is full. Default: wait.
    pub when_full: WhenFull,
}

/// How [`chat_completion`](crate::Llama::chat_completion) and [`chat_stream`](crate::Llama::chat_stream) generate.
pub type ChatOptions = GenerationOptions;

/// How [`text_completion`](crate::Llama::text_completion) and [`text_stream`](crate::Llama::text_stream) generate.
pub type CompletionOptions = GenerationOptions;

impl Default for GenerationOptions {
    fn default() -> Self {
        let SamplingOptions {
            temperature,
            top_p,
            top_k,
            min_p,
            repetition_penalty,
            frequency_penalty,
            presence_penalty,
            logit_bias,
        } = SamplingOptions::default();
        Self {
            temperature,
            top_p,
            max_gen_len: None,
            logprobs: false,
            echo: false,
            seed: None,
            stop: Vec::new(),
            top_k,
            min_p,
            repetition_penalty,
            frequency_penalty,
            presence_penalty,
            logit_bias,
            top_logprobs: 0,
            deadline: None,
            cancel: None,
            when_full: WhenFull::default(),
        }
    }
}

impl GenerationOptions {
    /// Checks what can be checked without a prompt; gives how to sample.
    pub(crate) fn sampling(&self, vocab_size: usize) -> Result<SamplingOptions, Error> {
        let sampling = SamplingOptions {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            logit_bias: self.logit_bias.clone(),
        };
        let known = |id: TokenId| (id.0 as usize) < vocab_size;
        sampling.validate().map_err(crate::GenerateError::Sampling)?;
        if let Some(id) = self.logit_bias.keys().find(|&&id| !known(id)) {
            return Err(Error::option("logit_bias", id.0, format!("ids of tokens, below {vocab_size}")));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::option("stop", "\"\"", "texts that are not empty"));
        }
        if self.top_logprobs > MAX_TOP_LOGPROBS {
            let expected = format!("at most {MAX_TOP_LOGPROBS}");
            return Err(Error::option("top_logprobs", self.top_logprobs, expected));
        }
        if self.top_logprobs > 0 && !self.logprobs {
            return Err(Error::option("top_logprobs", self.top_logprobs, "0 without `logprobs`"));
        }
        Ok(sampling)
    }
}

/// A token's id as a number.
mod token_id {
    use llama_backend::TokenId;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(id: &TokenId, serializer: S) -> Result<S::Ok, S::Error> {
        id.0.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TokenId, D::Error> {
        u32::deserialize(deserializer).map(TokenId)
    }
}

/// Token ids as numbers: in JSON, `{"29871": -100}`.
pub(crate) mod bias {
    use std::collections::BTreeMap;

    use llama_backend::TokenId;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        bias: &BTreeMap<TokenId, f32>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        bias.iter().map(|(id, bias)| (id.0, bias)).collect::<BTreeMap<_, _>>().serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<TokenId, f32>, D::Error> {
        let bias = BTreeMap::<u32, f32>::deserialize(deserializer)?;
        Ok(bias.into_iter().map(|(id, bias)| (TokenId(id), bias)).collect())
    }
}

/// One of the likeliest tokens at a place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenChoice {
    /// Its id.
    #[serde(with = "token_id")]
    pub id: TokenId,
    /// Its text alone.
    pub text: String,
    /// log p of the token under the model.
    pub logprob: f32,
}

/// What came of a dialog or of a prompt.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Prediction<T> {
    /// What the assistant says, or the continued text; with `echo`, the prompt in front.
    pub generation: T,
    /// The text of each token alone, when `logprobs` were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Vec<String>>,
    /// log p of each token under the model, whatever the temperature, when asked for. Entry 0 of an echoed prompt is 0, as the
    /// reference's is, and says nothing: the prompt's first token, usually BOS, stands behind nothing, so that the model has no probability of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<f32>>,
    /// For each token, the likeliest ones at its place, likeliest first, when `top_logprobs` were asked for; none for the first of an
    /// echoed prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_logprobs: Option<Vec<Vec<TokenChoice>>>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// What guards have refused or replaced, in the prompt and in the answer. Under [`FinishReason::Guarded`] the last of them says why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub judgements: Vec<Judgement>,
    /// The tokens that it cost.
    pub usage: Usage,
    /// How long it took.
    #[serde(default)]
    pub metrics: Metrics,
}

/// An answer of the assistant's (the reference's `ChatPrediction`).
pub type ChatPrediction = Prediction<Message>;

/// A continued text (the reference's `CompletionPrediction`).
pub type CompletionPrediction = Prediction<String>;

/// Whether the answers are the same, however long they took.
impl<T: PartialEq> PartialEq for Prediction<T> {
    fn eq(&self, other: &Self) -> bool {
        let Self { generation, tokens, logprobs, top_logprobs, finish_reason, judgements, usage, metrics: _ } =
            self;
        (generation, tokens, logprobs, top_logprobs, finish_reason, judgements, usage)
            == (
                &other.generation,
                &other.tokens,
                &other.logprobs,
                &other.top_logprobs,
                &other.finish_reason,
                &other.judgements,
                &other.usage,
            )
    }
}
