//! What is asked of the engine, and what it answers.

use std::sync::mpsc::Receiver;

use llama_backend::{BackendError, TokenId};
use serde::{Deserialize, Serialize};

use crate::sampler::{SamplingError, SamplingOptions};

/// A prompt and how to go on from it. All of it was checked: the engine trusts it.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// At least one token, at most `max_seq_len`.
    pub(crate) prompt: Vec<TokenId>,
    /// New tokens at most. The engine also stops where the context is full.
    pub(crate) max_gen_len: usize,
    /// Ends the answer, and is not a part of it.
    pub(crate) eos_id: TokenId,
    /// How the next token is chosen.
    pub(crate) sampling: SamplingOptions,
    /// Together they name the stream of random numbers.
    pub(crate) seed: u64,
    pub(crate) row: u64,
    /// Send each new token with its logprob.
    pub(crate) logprobs: bool,
    /// Send the logprobs of the prompt's tokens.
    pub(crate) prompt_logprobs: bool,
}

impl Request {
    /// The tokens whose positions must be computed. The last one's logits are for sampling alone: a prompt that is only
    /// scored does without, and one of which nothing is asked is not computed at all.
    pub(crate) fn n_prefill(&self) -> usize {
        match (self.max_gen_len, self.prompt_logprobs) {
            (0, false) => 0,
            (0, true) => self.prompt.len() - 1, // a prompt has at least one token
            _ => self.prompt.len(),
        }
    }
}

/// A request's name within its engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RequestId(pub(crate) u64);

/// A request that the engine has taken.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) id: RequestId,
    pub(crate) events: Receiver<Event>,
}

/// What the engine says about a request. The last event is `Finished` or `Failed`.
#[derive(Debug)]
pub(crate) enum Event {
    /// Once, before the first token, when asked for: entry i is log p(token i | tokens before i), entry 0 is 0.
    PromptLogprobs(Vec<f32>),
    /// A new token; its logprob when asked for.
    Token { id: TokenId, logprob: Option<f32> },
    /// The answer is complete.
    Finished(FinishReason),
    /// The answer cannot be completed.
    Failed(GenerateError),
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FinishReason {
    /// The model ended it with EOS.
    Stop,
    /// It reached `max_gen_len`.
    Length,
    /// It reached `max_seq_len`: the context is full.
    Context,
    /// It was not begun: the dialog holds a special tag.
    Refused,
}

/// The tokens that an answer cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt, BOS included.
    pub prompt_tokens: usize,
    /// Tokens of the answer, EOS not included.
    pub completion_tokens: usize,
}

/// Why the engine could not complete an answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// The backend failed in a step that this request was a part of.
    #[error("the forward pass failed: {0}")]
    Backend(std::sync::Arc<BackendError>),
    /// The backend gave fewer rows of logits than it was asked for.
    #[error("the backend gave {n_rows} rows of logits, row {row} is missing")]
    MissingLogits {
        /// The row that is missing.
        row: usize,
        /// The rows that are there.
        n_rows: usize,
    },
    /// No token could be chosen from the logits.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The request was cancelled.
    #[error("the request was cancelled")]
    Cancelled,
    /// The engine's thread has ended, after a failure that was reported to the requests it touched.
    #[error("the engine has stopped")]
    Stopped,
}
