//! What is asked of the engine, and what it answers.

use std::sync::Arc;
use std::time::Duration;

use llama_backend::TokenId;

use super::{CancelToken, FinishReason, GenerateError, WhenFull};
use crate::sampler::{Alternative, SamplingError, SamplingOptions, top_logprobs};

/// Requests that are handed over together, and what holds for all of them.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) requests: Vec<Request>,
    pub(crate) cancel: CancelToken,
    /// From submission on.
    pub(crate) deadline: Option<Duration>,
    pub(crate) when_full: WhenFull,
}

/// A prompt and how to go on from it. All of it was checked: the engine trusts it.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// Its place in the call: its events say it.
    pub(crate) place: usize,
    /// At least one token, at most `max_seq_len`.
    pub(crate) prompt: Arc<[TokenId]>,
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
    /// Send each token whose logprob is sent with so many of the likeliest at its place.
    pub(crate) top_logprobs: usize,
    /// Send the logprobs of the prompt's tokens from this one on: 1 at least, since token 0 stands behind nothing and has none.
    pub(crate) prompt_logprobs: Option<usize>,
}

impl Request {
    /// The tokens whose positions must be computed. The last one's logits are for sampling alone: a prompt that is only
    /// scored does without, and one of which nothing is asked is not computed at all.
    pub(crate) fn n_prefill(&self) -> usize {
        match (self.max_gen_len, self.prompt_logprobs) {
            (0, None) => 0,
            (0, Some(_)) => self.prompt.len() - 1, // a prompt has at least one token
            _ => self.prompt.len(),
        }
    }

    /// The likeliest tokens by a row of logits, as many as were asked for.
    pub(super) fn alternatives(&self, row: &[f32]) -> Result<Vec<Alternative>, SamplingError> {
        if self.top_logprobs == 0 { Ok(Vec::new()) } else { top_logprobs(row, self.top_logprobs) }
    }
}

/// A request's name within its engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RequestId(pub(crate) u64);

/// What the engine says about a request. The last event is `Finished` or `Failed`; times are from submission on.
#[derive(Debug)]
pub(crate) enum Event {
    /// It has a slot, which holds so many of the prompt's tokens already.
    Started { at: Duration, cached_tokens: usize },
    /// Once, before the first token, when asked for.
    PromptLogprobs(PromptLogprobs),
    /// A new token.
    Token(NewToken),
    /// The answer is complete.
    Finished(FinishReason),
    /// The answer cannot be completed.
    Failed(GenerateError),
}

/// What the model thinks of a prompt, from the token on from which it was asked.
#[derive(Debug, Clone)]
pub(crate) struct PromptLogprobs {
    /// log p(token | tokens before it) of each.
    pub(crate) logprobs: Vec<f32>,
    /// For each, the likeliest at its place, as many as were asked for.
    pub(crate) alternatives: Vec<Vec<Alternative>>,
    /// Whether each is the most probable one at its place.
    pub(crate) is_greedy: bool,
}

/// A token that was sampled; with logprobs as they were asked for.
#[derive(Debug)]
pub(crate) struct NewToken {
    pub(crate) id: TokenId,
    pub(crate) at: Duration,
    pub(crate) logprob: Option<f32>,
    pub(crate) alternatives: Vec<Alternative>,
}
