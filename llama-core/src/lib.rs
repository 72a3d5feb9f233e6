//! Chat with Llama 2: Meta's own API in Rust, token for token like Meta's reference, on interchangeable engines.
//!
//! # In ten lines
//!
//! ```no_run
//! use llama_core::{ChatOptions, CompletionOptions, Dialog, Llama};
//!
//! let llama = Llama::build("llama-2-7b-chat", "tokenizer.model", 512, 8)?;
//! let dialogs = [Dialog::new("what is the recipe of mayonnaise?")];
//! for answer in llama.chat_completion(&dialogs, &ChatOptions::default())? {
//!     println!("> {}", answer.generation.content);
//! }
//! let prompts = ["Simply put, the theory of relativity states that "];
//! let texts = llama.text_completion(&prompts, &CompletionOptions { echo: true, ..Default::default() })?;
//! # Ok::<(), llama_core::Error>(())
//! ```
//!
//! # Where things are
//!
//! - [`Llama`] is a loaded model with the reference's three calls; [`LlamaBuilder`] has the choices that
//!   [`Llama::build`] leaves at their defaults.
//! - [`ChatStream`] is an answer as it comes; [`GenerationOptions`] has all that can be asked of one, [`CancelToken`] ends it, [`Metrics`] and
//!   [`EngineStats`] count.
//! - [`Session`] is a conversation that remembers, and [`ContextPolicy`] what it does when the context is full.
//! - [`Guard`] judges what goes in and what comes out, of a model that [`Llama::with_guard`] gave it.
//! - [`Llama::score`] says how probable a text is: what evaluations ask.
//! - [`checkpoint`] reads what users bring: Meta's `.pth` shards, Hugging Face's safetensors, GGUF.
//! - [`tokenizer`] turns text into tokens and back as SentencePiece does.
//! - [`sampler`] chooses the next token by the reference's rule.
//! - [`llama_backend`] is the seam to the engines; the default one is candle.
//!
//! # Features
//!
//! - `candle` (default): the candle backend, on the processor.
//! - `cuda`, `metal`: the candle backend on GPUs too.
//! - `futures`: [`ChatStream`] is a `futures_core::Stream`.
//! - `tracing`: loading, and each request's queue, prefill and decode, as spans.
//! - `mpi`: [`LlamaBuilder::communicator`] can be MPI's (`MpiCommunicator`), for models split over processes and hosts.
//! - `onnx`: the ONNX Runtime backend, whose library is looked for when it is opened (`ORT_DYLIB_PATH`).
//!
//! Features only add choices: none of them changes what the others do.

pub mod checkpoint;
pub mod sampler;
pub mod tokenizer;

mod builder;
mod error;
mod generate;
mod llama;
mod memory;
mod options;
mod registry;
mod safety;
mod score;
mod session;
mod stream;
mod trace;
mod weights;

pub use builder::LlamaBuilder;
pub use error::Error;
pub use generate::{CancelToken, EngineStats, FinishReason, GenerateError, Metrics, Usage, WhenFull};
pub use llama::Llama;
pub use llama_backend::{
    Backend, BackendError, Communicator, CommunicatorError, Computation, DType, Device, MemoryPlan,
    ModelConfig, Notice, TokenId,
};
pub use llama_dialog::{
    Conversation, Dialog, DialogError, Message, REFUSAL, Role, SAFETY_SYSTEM_PROMPT, SpecialTag, TagFound,
    Turn,
};
#[cfg(feature = "mpi")]
pub use llama_parallel_mpi::{MpiCommunicator, MpiError};
pub use memory::MemoryLimit;
pub use options::{
    ChatOptions, ChatPrediction, CompletionOptions, CompletionPrediction, GenerationOptions, Prediction,
    TokenChoice,
};
pub use registry::BackendKind;
pub use safety::{
    Classifier, ClassifierError, Excerpt, Finding, Guard, GuardError, HoldBack, Judgement, Outcome,
    PromptLeak, Side, Verdict, WordList, WordListError, guard_fn,
};
pub use score::{Score, TextScores, WindowOptions};
pub use session::{
    ContextBudget, ContextOptions, ContextPolicy, ContextReport, LeftOut, LeftOutReason, Session,
    SessionAnswer, SessionStream, Summarizer, SummaryError, SummaryRequest,
};
pub use stream::{BatchStream, ChatStream, RefusedPrompt, StreamEvent, StreamToken, TextStream};
pub use weights::Quantization;
