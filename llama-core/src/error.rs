//! [`Error`]: everything that can go wrong between a checkpoint on disk and an answer.

use llama_backend::{BackendError, MemoryPlan, TokenId};
use llama_dialog::{DialogError, TagFound};

use crate::checkpoint::CheckpointError;
use crate::generate::GenerateError;
use crate::session::SummaryError;
use crate::tokenizer::TokenizerError;

/// Why a model could not be built or an answer not be given. Whatever it names, nothing was half done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The checkpoint could not be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The tokenizer could not be read, or could not decode.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The backend refused the model, or failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// An answer could not be completed.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// The builder was not told where the checkpoint is.
    #[error("no checkpoint was given: call `checkpoint(path)` before `build()`")]
    NoCheckpoint,
    /// No tokenizer was given, and none lies beside the checkpoint or in its GGUF file.
    #[error(
        "no tokenizer.model or tokenizer.json lies beside the checkpoint, and none is in it: call `tokenizer(path)` before `build()`"
    )]
    NoTokenizer,
    /// The tokenizer belongs to another model.
    #[error("the tokenizer has {tokenizer} tokens, the checkpoint {checkpoint}: they do not belong together")]
    VocabularyMismatch {
        /// Tokens that the tokenizer knows.
        tokenizer: usize,
        /// Rows of the checkpoint's embedding.
        checkpoint: usize,
    },
    /// A backend that was not compiled in.
    #[error("the {backend} backend is not compiled in: enable llama-core's feature `{feature}`")]
    MissingFeature {
        /// The backend's name.
        backend: &'static str,
        /// The Cargo feature that brings it.
        feature: &'static str,
    },
    /// An option out of its range.
    #[error("{option} is {found}, expected {expected}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// Its value.
        found: String,
        /// What would have been accepted.
        expected: String,
    },
    /// `max_seq_len` above what the checkpoint was trained for.
    #[error(
        "max_seq_len is {found}, but the checkpoint allows {limit} (Llama::builder().context_limit(n) allows more)"
    )]
    MaxSeqLen {
        /// The `max_seq_len` asked for.
        found: usize,
        /// What the checkpoint allows.
        limit: usize,
    },
    /// More memory than there is.
    #[error("{}", no_memory(plan, *available))]
    Memory {
        /// What the model would take.
        plan: MemoryPlan,
        /// The bytes that it may take: what the system has available, or the
        /// [`memory_limit`](crate::LlamaBuilder::memory_limit).
        available: u64,
    },
    /// A call of another rank's.
    #[error("rank {rank} of {size} does not `{call}`: rank 0 calls `build()`, the others `follow()`")]
    Rank {
        /// This rank.
        rank: usize,
        /// All of them.
        size: usize,
        /// The call.
        call: &'static str,
    },
    /// A call without dialogs, prompts, or whatever else it is about.
    #[error("the call holds no {what}: at least one is expected")]
    Empty {
        /// What is missing: `dialogs`, `prompts` …
        what: &'static str,
    },
    /// A prompt without tokens.
    #[error("prompt {row} holds no token: at least one is expected (BOS, usually)")]
    EmptyPrompt {
        /// The prompt's place in the call.
        row: usize,
    },
    /// A continuation that adds no token to its prompt, so that there is nothing to score.
    #[error("continuation {row} adds no token to its prompt: at least one is expected")]
    EmptyContinuation {
        /// The pair's place in the call.
        row: usize,
    },
    /// A prompt that leaves no room in the context.
    #[error("prompt {row} has {prompt} tokens, but the context (max_seq_len) holds {limit}{}", room(*prompt, *reserved, *limit))]
    ContextOverflow {
        /// The prompt's place in the call.
        row: usize,
        /// Its tokens.
        prompt: usize,
        /// Tokens that are to be free for the answer: one, or none for a prompt that is only scored; in a session, its
        /// [`reserve`](crate::ContextOptions::reserve).
        reserved: usize,
        /// `max_seq_len`.
        limit: usize,
    },
    /// A message that leaves no room in the context though nothing is sent with it but the system prompt.
    #[error(
        "the message with its system prompt has {prompt} tokens, and {reserved} are reserved for the answer, but the context (max_seq_len) holds {limit}"
    )]
    MessageTooLong {
        /// Tokens of the message and the system prompt.
        prompt: usize,
        /// Tokens that are to be free for the answer.
        reserved: usize,
        /// `max_seq_len`.
        limit: usize,
    },
    /// A dialog that has no rendering, so that it has no tokens either.
    #[error(transparent)]
    SpecialTag(#[from] TagFound),
    /// Turns could not be summarised.
    #[error(transparent)]
    Summary(#[from] SummaryError),
    /// What was to be a conversation is no list of messages.
    #[error("the conversation is no JSON list of messages: {0}")]
    Json(serde_json::Error),
    /// What was to be a conversation is none: the error names the message.
    #[error(transparent)]
    Dialog(#[from] DialogError),
    /// A token that the model does not have.
    #[error(
        "token {token} at position {position} of prompt {row} is not below the vocabulary's size {vocab_size}"
    )]
    TokenOutOfRange {
        /// The prompt's place in the call.
        row: usize,
        /// The token's place in the prompt.
        position: usize,
        /// The token.
        token: TokenId,
        /// Tokens of the vocabulary.
        vocab_size: usize,
    },
    /// A call that a guarded model does not have, because nothing in it could be judged.
    #[error("a guarded model has no `{call}`: guards judge text (the model that it was made from has it)")]
    Guarded {
        /// The call.
        call: &'static str,
    },
    /// The engine's thread could not be started.
    #[error("the engine's thread could not be started: {0}")]
    Thread(std::io::Error),
}

impl Error {
    /// Whether a Cargo feature is all that is missing.
    #[must_use]
    pub fn is_missing_feature(&self) -> bool {
        matches!(self, Self::MissingFeature { .. })
    }

    /// Whether a prompt was too long: a shorter one, or a larger `max_seq_len`, would do.
    #[must_use]
    pub fn is_context_overflow(&self) -> bool {
        matches!(self, Self::ContextOverflow { .. } | Self::MessageTooLong { .. })
    }

    pub(crate) fn option(
        option: &'static str,
        found: impl std::fmt::Display,
        expected: impl std::fmt::Display,
    ) -> Self {
        Self::Option { option, found: found.to_string(), expected: expected.to_string() }
    }
}

/// A prompt that would fit is refused only because too little would be left to generate.
fn room(prompt: usize, reserved: usize, limit: usize) -> String {
    match limit.checked_sub(prompt) {
        None => String::new(),
        Some(0) => ", which leaves no room to generate (max_gen_len 0 would score it)".to_owned(),
        Some(left) => format!(", which leaves {left} for the answer, and {reserved} are reserved"),
    }
}

fn no_memory(plan: &MemoryPlan, available: u64) -> String {
    let mb = |bytes: u64| bytes.div_ceil(1_000_000);
    format!(
        "the model takes {} MB ({} for weights, not counting {} used in the file's memory map, {} for the KV cache, {} for scratch), but \
         {} MB are available: less max_seq_len or max_batch_size, or weights of fewer bits, would take less \
         (Llama::builder().memory_limit(…) allows more)",
        mb(plan.allocated()),
        mb(plan.weights.saturating_sub(plan.in_place)),
        mb(plan.in_place),
        mb(plan.kv_cache),
        mb(plan.scratch),
        available / 1_000_000,
    )
}
