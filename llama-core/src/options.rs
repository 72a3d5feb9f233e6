//! How to generate, and what comes of it: the reference's arguments and result types.

use serde::{Deserialize, Serialize};

use crate::Message;
use crate::generate::{FinishReason, Usage};
use crate::sampler::SamplingOptions;

/// How [`chat_completion`](crate::Llama::chat_completion) generates: the reference's arguments and defaults.
///
/// ```
/// use llama_core::ChatOptions;
///
/// let options = ChatOptions { temperature: 0.0, max_gen_len: Some(64), ..Default::default() };
/// assert_eq!(options.top_p, 0.9);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChatOptions {
    /// Divides the logits before sampling; at 0 and below, the most probable token is taken. Default 0.6.
    pub temperature: f64,
    /// Samples from the smallest set of tokens whose probability exceeds this (nucleus sampling). Default 0.9.
    pub top_p: f64,
    /// New tokens at most; `None` (the default): as many as the context holds.
    pub max_gen_len: Option<usize>,
    /// Return the answer's tokens and their log-probabilities. Default false.
    pub logprobs: bool,
    /// Seed of this call's sampling; `None`: the model's ([`LlamaBuilder::seed`](crate::LlamaBuilder::seed)). The same
    /// prompt with the same seed gives the same answer, alone or in a batch.
    pub seed: Option<u64>,
}

impl Default for ChatOptions {
    fn default() -> Self {
        let GenerationOptions { temperature, top_p, max_gen_len, logprobs, echo: _, seed } =
            GenerationOptions::default();
        Self { temperature, top_p, max_gen_len, logprobs, seed }
    }
}

/// How [`generate`](crate::Llama::generate) and [`text_completion`](crate::Llama::text_completion) generate: the reference's
/// arguments and defaults.
///
/// ```
/// use llama_core::GenerationOptions;
///
/// let options = GenerationOptions { echo: true, ..Default::default() };
/// assert_eq!((options.temperature, options.max_gen_len), (0.6, None));
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
    /// Return log-probabilities. Default false.
    pub logprobs: bool,
    /// Return the prompt in front of what was generated. Default false.
    pub echo: bool,
    /// Seed of this call's sampling; `None`: the model's ([`LlamaBuilder::seed`](crate::LlamaBuilder::seed)). The same
    /// prompt with the same seed gives the same answer, alone or in a batch.
    pub seed: Option<u64>,
}

/// How [`text_completion`](crate::Llama::text_completion) generates.
pub type CompletionOptions = GenerationOptions;

impl Default for GenerationOptions {
    fn default() -> Self {
        let SamplingOptions { temperature, top_p } = SamplingOptions::default();
        Self { temperature, top_p, max_gen_len: None, logprobs: false, echo: false, seed: None }
    }
}

impl From<&ChatOptions> for GenerationOptions {
    fn from(options: &ChatOptions) -> Self {
        let &ChatOptions { temperature, top_p, max_gen_len, logprobs, seed } = options;
        Self { temperature, top_p, max_gen_len, logprobs, echo: false, seed }
    }
}

/// An answer of the assistant's (the reference's `ChatPrediction`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatPrediction {
    /// What the assistant says.
    pub generation: Message,
    /// The text of each token alone, when `logprobs` were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Vec<String>>,
    /// log p of each token under the model, whatever the temperature, when asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<f32>>,
    /// Why the answer ended.
    pub finish_reason: FinishReason,
    /// The tokens that it cost.
    pub usage: Usage,
}

/// A continued text (the reference's `CompletionPrediction`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompletionPrediction {
    /// The continuation; with `echo`, the prompt in front.
    pub generation: String,
    /// The text of each token alone, when `logprobs` were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Vec<String>>,
    /// log p of each token under the model, whatever the temperature, when asked for. Entry 0 of an echoed prompt is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<f32>>,
    /// Why the text ended.
    pub finish_reason: FinishReason,
    /// The tokens that it cost.
    pub usage: Usage,
}
