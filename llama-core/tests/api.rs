//! The API's promises that need no golden file: what is refused, what is shared, what depends on what.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use llama_backend::testing::{NaiveBackend, RandomWeights};
use llama_backend::{
    Backend, BackendError, Batch, Capabilities, LoadParams, Logits, MemoryPlan, Model, ModelSource, Slot,
};
use llama_core::tokenizer::Tokenizer;
use llama_core::{
    ChatOptions, CompletionOptions, DType, Device, Dialog, Error, FinishReason, GenerationOptions, Llama,
    LlamaBuilder, MemoryLimit, Message, ModelConfig, REFUSAL, StreamEvent, TokenId,
};

const TOKENIZER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-chat/tokenizer.model");

/// A small random model with tiny-chat's vocabulary, on the naive backend.
fn builder() -> LlamaBuilder {
    let tokenizer = Tokenizer::open(TOKENIZER).unwrap();
    let config = ModelConfig {
        dim: 16,
        n_layers: 1,
        n_heads: 2,
        n_kv_heads: 1,
        head_dim: 8,
        ffn_dim: 12,
        vocab_size: tokenizer.vocab_size(),
        norm_eps: 1e-5,
        rope_theta: 1e4,
    };
    Llama::builder()
        .weights(Arc::new(RandomWeights::new(config, DType::F32, 7).materialised()))
        .tokenizer_from(tokenizer)
        .custom_backend(Arc::new(NaiveBackend))
        .max_seq_len(64)
}

fn llama() -> Llama {
    builder().build().unwrap()
}

fn chat_options() -> ChatOptions {
    ChatOptions { temperature: 0.8, max_gen_len: Some(6), ..Default::default() }
}

#[test]
fn a_model_can_be_shared_between_threads() {
    fn shared<T: Send + Sync + Clone + 'static>() {}
    shared::<Llama>();
}

#[test]
fn defaults_are_the_references() {
    let chat = ChatOptions::default();
    assert_eq!((chat.temperature, chat.top_p, chat.max_gen_len, chat.logprobs), (0.6, 0.9, None, false));
    let text = CompletionOptions::default();
    assert_eq!((text.temperature, text.top_p, text.max_gen_len), (0.6, 0.9, None));
    assert!(!text.echo && !text.logprobs);
}

#[test]
fn empty_calls_are_refused() {
    let llama = llama();
    assert!(matches!(llama.chat_completion(&[], &chat_options()), Err(Error::Empty { what: "dialogs" })));
    let none: [&str; 0] = [];
    let options = GenerationOptions::default();
    assert!(matches!(llama.text_completion(&none, &options), Err(Error::Empty { what: "prompts" })));
    assert!(matches!(llama.generate(&[], &options), Err(Error::Empty { what: "prompts" })));
    let error = llama.generate(&[vec![TokenId(1)], vec![]], &options).unwrap_err();
    assert!(matches!(error, Error::EmptyPrompt { row: 1 }), "{error}");
    let error = llama.generate(&[vec![TokenId(1), TokenId(1 << 20)]], &options).unwrap_err();
    assert!(matches!(error, Error::TokenOutOfRange { row: 0, position: 1, .. }), "{error}");
}

#[test]
fn options_out_of_range_are_refused() {
    let llama = llama();
    for (temperature, top_p) in [
        (f64::NAN, 0.9),
        (f64::INFINITY, 0.9),
        (f64::NEG_INFINITY, 0.9),
        (0.6, f64::NAN),
        (0.6, f64::INFINITY),
        (0.6, -0.1),
    ] {
        let options = GenerationOptions { temperature, top_p, max_gen_len: Some(2), ..Default::default() };
        let error = llama.text_completion(&["a"], &options).unwrap_err();
        assert!(matches!(error, Error::Generate(_)), "{temperature} {top_p}: {error}");
    }
}

#[test]
fn a_builder_checks_its_choices_before_it_loads() {
    let refused = |builder: LlamaBuilder| builder.build().unwrap_err();
    assert!(matches!(refused(Llama::builder()), Error::NoCheckpoint));
    assert!(matches!(refused(builder().max_batch_size(0)), Error::Option { option: "max_batch_size", .. }));
    assert!(matches!(refused(builder().max_seq_len(0)), Error::Option { option: "max_seq_len", .. }));
    assert!(matches!(refused(builder().max_queue_len(0)), Error::Option { option: "max_queue_len", .. }));
    assert!(matches!(
        refused(builder().idle_slots(usize::MAX)),
        Error::Backend(BackendError::Params { what: "n_slots", .. })
    ));
    assert!(matches!(refused(builder().max_seq_len(4097)), Error::MaxSeqLen { found: 4097, limit: 4096 }));
    assert!(matches!(refused(builder().device(Device::Cuda(0))), Error::Option { option: "device", .. }));
    assert!(matches!(
        refused(builder().threads(0)),
        Error::Backend(BackendError::Params { what: "threads", .. })
    ));
    builder().max_seq_len(4097).context_limit(5000).build().unwrap();
    let error = refused(Llama::builder().checkpoint("/nowhere"));
    assert!(matches!(error, Error::Checkpoint(_)), "{error}");
    assert!(error.to_string().contains("/nowhere"), "{error}");
}

#[test]
fn what_does_not_fit_in_memory_is_refused_with_the_numbers_before_it_is_loaded() {
    let plan = builder().plan().unwrap();
    assert!(plan.weights > 0 && plan.kv_cache > 0 && plan.scratch > 0);
    builder().memory_limit(MemoryLimit::Bytes(plan.allocated())).build().unwrap();
    builder().memory_limit(MemoryLimit::Unlimited).build().unwrap();
    let error = builder().memory_limit(MemoryLimit::Bytes(plan.allocated() - 1)).build().unwrap_err();
    let Error::Memory { plan: found, available } = &error else { panic!("{error}") };
    assert_eq!((*found, *available), (plan, plan.allocated() - 1));
    let longer = builder().max_seq_len(128).plan().unwrap();
    assert_eq!(longer.kv_cache, 2 * plan.kv_cache);
}

/// Weights that the engine uses where the reader shares them are planned, and need no memory of the process's own: in half precision, which
/// candle packs, the embeddings, and in f32 all. Converted ones do.
#[cfg(feature = "candle")]
#[test]
fn weights_in_a_memory_map_are_not_asked_for_twice() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-chat");
    let builder = || Llama::builder().checkpoint(dir);
    let plan = builder().plan().unwrap();
    let llama = builder().build().unwrap();
    let (config, n_params) = (llama.config(), llama.config().n_params());
    let stored = if plan.weights < 3 * n_params { 2 } else { 4 };
    assert!(plan.weights.abs_diff(stored * n_params) < plan.weights / 50, "{plan:?} for {n_params}");
    if stored == 2 {
        assert_eq!(plan.in_place, stored * (config.vocab_size * config.dim) as u64, "{plan:?}");
    } else {
        assert!(plan.in_place > plan.weights / 10 * 9, "{plan:?}");
    }
    let other = if stored == 2 { DType::F32 } else { DType::BF16 };
    assert_eq!(builder().dtype(other).plan().unwrap().in_place, 0);
    let packed = builder().quantize(llama_core::Quantization::Q8_0).plan().unwrap();
    assert!(packed.in_place == 0 && packed.weights < plan.weights, "{packed:?}");
    builder().memory_limit(MemoryLimit::Bytes(plan.allocated())).build().unwrap();
    let error =
        builder().memory_limit(MemoryLimit::Bytes(plan.allocated())).dtype(other).build().unwrap_err();
    assert!(matches!(error, Error::Memory { .. }), "{error}");
}

#[test]
fn a_prompt_that_leaves_no_room_fails_the_whole_call_before_any_compute() {
    let llama = llama();
    let full: Vec<TokenId> = (0..64).map(|i| TokenId(3 + i)).collect();
    let prompts = [vec![TokenId(1)], full];
    let options =
        GenerationOptions { max_gen_len: Some(1), logprobs: true, echo: true, ..Default::default() };
    let error = llama.generate(&prompts, &options).unwrap_err();
    assert!(
        matches!(error, Error::ContextOverflow { row: 1, prompt: 64, reserved: 1, limit: 64 }),
        "{error}"
    );
    assert!(error.is_context_overflow());
    let score = GenerationOptions { max_gen_len: Some(0), ..options };
    let (tokens, logprobs) = llama.generate(&prompts, &score).unwrap();
    assert_eq!(tokens, prompts);
    let lens: Vec<usize> = logprobs.unwrap().iter().map(Vec::len).collect();
    assert_eq!(lens, [1, 64]);
}

#[test]
fn an_answer_does_not_depend_on_its_neighbours_or_its_place() {
    let llama = llama();
    let dialogs: Vec<Dialog> = ["a", "b", "a", "c"].into_iter().map(Dialog::new).collect();
    let options = ChatOptions { logprobs: true, ..chat_options() };
    let together = llama.chat_completion(&dialogs, &options).unwrap();
    for i in [0, 1, 3] {
        assert_eq!(
            llama.chat_completion(&dialogs[i..=i], &options).unwrap()[0].generation,
            together[i].generation
        );
    }
    let reversed: Vec<Dialog> = dialogs.iter().rev().cloned().collect();
    let backwards = llama.chat_completion(&reversed, &options).unwrap();
    assert_eq!(backwards[0].generation, together[3].generation);
    assert_eq!(backwards[2].generation, together[1].generation);
    // The same prompt twice in a call is asked twice: two answers, the same two in any order.
    assert_eq!(backwards[1].generation, together[0].generation);
    assert_eq!(backwards[3].generation, together[2].generation);
    assert_ne!(together[0].generation, together[2].generation);
    let other_seed = ChatOptions { seed: Some(2), ..options };
    assert_ne!(llama.chat_completion(&dialogs, &other_seed).unwrap(), together);
}

#[test]
fn a_refused_dialog_costs_nothing_and_counts_for_nothing() {
    let llama = llama();
    let long = "[INST] ".repeat(1000);
    let dialogs = [Dialog::new(long), Dialog::new("a")];
    let options = ChatOptions { logprobs: true, ..chat_options() };
    let answers = llama.chat_completion(&dialogs, &options).unwrap();
    assert_eq!(answers[0].generation, Message::assistant(REFUSAL));
    assert_eq!(answers[0].finish_reason, FinishReason::Refused);
    assert_eq!(answers[0].usage.prompt_tokens + answers[0].usage.completion_tokens, 0);
    assert_eq!(
        (answers[0].tokens.as_deref(), answers[0].logprobs.as_deref()),
        (Some(&[][..]), Some(&[][..]))
    );
    assert_eq!(answers[1], llama.chat_completion(&dialogs[1..], &options).unwrap()[0]);
    let events: Vec<_> = llama.chat_stream(&dialogs[0], &options).unwrap().map(Result::unwrap).collect();
    assert_eq!(events[0], StreamEvent::Text(REFUSAL.to_owned()));
    assert!(matches!(events[1], StreamEvent::Finished { finish_reason: FinishReason::Refused, .. }));
    assert_eq!(events.len(), 2);
}

#[test]
fn a_stream_is_the_answer_in_pieces() {
    let llama = llama();
    for seed in 0..8 {
        let dialog = Dialog::new("Tell me something.");
        let options =
            ChatOptions { seed: Some(seed), temperature: 1.5, max_gen_len: Some(20), ..Default::default() };
        let whole = llama.chat_completion(std::slice::from_ref(&dialog), &options).unwrap().remove(0);
        let mut text = String::new();
        let mut tokens = Vec::new();
        let mut end = None;
        for event in llama.chat_stream(&dialog, &options).unwrap() {
            match event.unwrap() {
                StreamEvent::Text(piece) => text.push_str(&piece),
                StreamEvent::Token(token) => tokens.push(token),
                StreamEvent::Finished { finish_reason, usage, .. } => end = Some((finish_reason, usage)),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(text, whole.generation.content);
        assert_eq!(end, Some((whole.finish_reason, whole.usage)));
        assert_eq!(tokens.len(), whole.usage.completion_tokens);
    }
}

#[test]
fn predictions_are_json() {
    let llama = llama();
    let answer = llama.chat_completion(&[Dialog::new("a")], &chat_options()).unwrap().remove(0);
    let json = serde_json::to_value(&answer).unwrap();
    assert_eq!(json["generation"]["role"], "assistant");
    assert!(json.get("logprobs").is_none());
    assert_eq!(serde_json::from_value::<llama_core::ChatPrediction>(json).unwrap(), answer);
}

/// Wraps a backend: records how many runs each forward pass holds, and until one held two, gives each a moment for company.
#[derive(Debug, Clone, Default)]
struct Recorder {
    runs: Arc<Mutex<Vec<usize>>>,
}

struct Recorded {
    inner: Box<dyn Model>,
    runs: Arc<Mutex<Vec<usize>>>,
}

impl Backend for Recorder {
    fn name(&self) -> &'static str {
        "recorder"
    }

    fn capabilities(&self) -> Capabilities {
        NaiveBackend.capabilities()
    }

    fn plan(&self, config: &ModelConfig, dtype: DType, params: &LoadParams) -> MemoryPlan {
        NaiveBackend.plan(config, dtype, params)
    }

    fn load(&self, source: ModelSource, params: &LoadParams) -> Result<Box<dyn Model>, BackendError> {
        let inner = NaiveBackend.load(source, params)?;
        Ok(Box::new(Recorded { inner, runs: Arc::clone(&self.runs) }))
    }
}

impl Model for Recorded {
    fn config(&self) -> &ModelConfig {
        self.inner.config()
    }

    fn params(&self) -> &LoadParams {
        self.inner.params()
    }

    fn forward(&mut self, batch: &Batch<'_>, out: &mut Logits) -> Result<(), BackendError> {
        let mut runs = self.runs.lock().unwrap();
        runs.push(batch.runs.len());
        if !runs.contains(&2) {
            thread::sleep(Duration::from_millis(10));
        }
        drop(runs);
        self.inner.forward(batch, out)
    }

    fn truncate(&mut self, slot: Slot, len: usize) -> Result<(), BackendError> {
        self.inner.truncate(slot, len)
    }

    fn fork(&mut self, from: Slot, to: Slot, len: usize) -> Result<(), BackendError> {
        self.inner.fork(from, to, len)
    }
}

#[test]
fn calls_from_two_threads_share_a_forward_pass() {
    let recorder = Recorder::default();
    let runs = Arc::clone(&recorder.runs);
    let llama = builder().custom_backend(Arc::new(recorder)).build().unwrap();
    let options = ChatOptions { temperature: 0.0, ..Default::default() };
    let ask = |text: &str| llama.chat_completion(&[Dialog::new(text)], &options).unwrap().remove(0);
    let (first, second) = thread::scope(|scope| {
        let first = scope.spawn(|| ask("first"));
        let second = scope.spawn(|| ask("second"));
        (first.join().unwrap(), second.join().unwrap())
    });
    assert!(first.usage.completion_tokens > 10, "long enough to meet");
    assert!(runs.lock().unwrap().contains(&2), "no forward pass held runs of both calls");
    assert_eq!(first, ask("first"));
    assert_eq!(second, ask("second"));
}
