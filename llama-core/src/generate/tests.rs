//! The scheduler's laws, and the engine on a scripted model.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use llama_backend::{
    BackendError, Batch, LoadParams, Logits, Model, ModelConfig, Slot, Slots, TokenId, Want,
};
use proptest::prelude::*;

use super::request::{RequestId, Submission};
use super::scheduler::{Job, MAX_PROMPT_ROWS, Scheduler};
use super::{Engine, Event, FinishReason, GenerateError, Request};
use crate::sampler::SamplingOptions;

const VOCAB: usize = 16;
const EOS: TokenId = TokenId(2);
const PATIENCE: Duration = Duration::from_secs(20);

/// What a scripted model saw of one run.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    slot: Slot,
    start_pos: usize,
    n_tokens: usize,
    want: Want,
}

/// Makes token `t + 1` follow token `t`, with a logit that tells how far the vocabulary goes; records its batches; fails or
/// waits when told to.
struct Scripted {
    config: ModelConfig,
    params: LoadParams,
    slots: Slots,
    seen: Arc<Mutex<Vec<Vec<Seen>>>>,
    /// When there is one, each forward waits for a permission; a closed gate stands open.
    gate: Option<Receiver<Permission>>,
}

enum Permission {
    Go,
    Fail,
    Panic,
}

impl Model for Scripted {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn params(&self) -> &LoadParams {
        &self.params
    }

    fn forward(&mut self, batch: &Batch<'_>, out: &mut Logits) -> Result<(), BackendError> {
        let seen = |run: &llama_backend::Run<'_>| Seen {
            slot: run.slot,
            start_pos: run.start_pos,
            n_tokens: run.tokens.len(),
            want: run.want,
        };
        self.seen.lock().unwrap().push(batch.runs.iter().map(seen).collect());
        match self.gate.as_ref().and_then(|gate| gate.recv_timeout(PATIENCE).ok()) {
            Some(Permission::Fail) => return Err(BackendError::engine("scripted", "told to fail")),
            Some(Permission::Panic) => panic!("told to panic"),
            Some(Permission::Go) | None => {}
        }
        self.slots.check(batch)?;
        let rows = out.reset(batch.n_rows(), VOCAB);
        let mut rows = rows.chunks_exact_mut(VOCAB);
        for run in batch.runs {
            let first = run.tokens.len() - run.n_rows();
            for token in &run.tokens[first..] {
                let row = rows.next().unwrap();
                row.fill(0.0);
                row[(token.0 as usize + 1) % VOCAB] = 5.0;
            }
        }
        self.slots.advance(batch);
        Ok(())
    }

    fn truncate(&mut self, slot: Slot, len: usize) -> Result<(), BackendError> {
        self.slots.truncate(slot, len)
    }

    fn fork(&mut self, from: Slot, to: Slot, len: usize) -> Result<(), BackendError> {
        self.slots.fork(from, to, len)
    }
}

struct Stage {
    engine: Engine,
    seen: Arc<Mutex<Vec<Vec<Seen>>>>,
    gate: Sender<Permission>,
}

/// An engine on a scripted model, gated or not.
fn stage(max_seq_len: usize, max_batch_size: usize, gated: bool) -> Stage {
    let config = ModelConfig {
        dim: 2,
        n_layers: 1,
        n_heads: 1,
        n_kv_heads: 1,
        head_dim: 2,
        ffn_dim: 2,
        vocab_size: VOCAB,
        norm_eps: 1e-5,
        rope_theta: 1e4,
    };
    let params = Engine::params(max_seq_len, max_batch_size, None);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (gate, permissions) = mpsc::channel();
    let model = Scripted {
        slots: Slots::new(&config, &params),
        config,
        params,
        seen: Arc::clone(&seen),
        gate: gated.then_some(permissions),
    };
    Stage { engine: Engine::start(move || Ok(Box::new(model))).unwrap(), seen, gate }
}

fn request(prompt: &[u32], max_gen_len: usize) -> Request {
    Request {
        prompt: prompt.iter().copied().map(TokenId).collect(),
        max_gen_len,
        eos_id: EOS,
        sampling: SamplingOptions { temperature: 0.0, top_p: 0.9 },
        seed: 1,
        row: 0,
        logprobs: false,
        prompt_logprobs: false,
    }
}

/// The tokens until the end, and how it ended.
fn wait(submission: &Submission) -> (Vec<u32>, Result<FinishReason, GenerateError>) {
    let mut tokens = Vec::new();
    loop {
        match submission.events.recv_timeout(PATIENCE) {
            Ok(Event::Token { id, .. }) => tokens.push(id.0),
            Ok(Event::PromptLogprobs(_)) => {}
            Ok(Event::Finished(reason)) => return (tokens, Ok(reason)),
            Ok(Event::Failed(error)) => return (tokens, Err(error)),
            Err(_) => return (tokens, Err(GenerateError::Stopped)),
        }
    }
}

fn run(stage: &Stage, requests: Vec<Request>) -> Vec<(Vec<u32>, Result<FinishReason, GenerateError>)> {
    stage.engine.submit(requests).unwrap().iter().map(wait).collect()
}

#[test]
fn answers_end_by_eos_length_or_context() {
    let stage = stage(8, 4, false);
    let ended = run(&stage, vec![request(&[14], 9), request(&[3], 2), request(&[3, 4], 99)]);
    assert!(matches!(&ended[0], (tokens, Ok(FinishReason::Stop)) if *tokens == [15, 0, 1]), "{:?}", ended[0]);
    assert!(matches!(&ended[1], (tokens, Ok(FinishReason::Length)) if *tokens == [4, 5]), "{:?}", ended[1]);
    assert!(matches!(&ended[2], (tokens, Ok(FinishReason::Context)) if *tokens == [5, 6, 7, 8, 9, 10]));
}

#[test]
fn more_requests_than_slots_wait_their_turn_and_every_step_is_full() {
    let stage = stage(64, 2, false);
    let ended = run(&stage, (0..5).map(|_| request(&[3, 4], 3)).collect());
    assert!(ended.iter().all(|(tokens, _)| *tokens == [5, 6, 7]));
    let seen = stage.seen.lock().unwrap();
    // Two pairs of rows, then one alone, three steps each.
    assert_eq!(seen.len(), 9, "{seen:?}");
    assert!(seen[..6].iter().all(|batch| batch.len() == 2), "{seen:?}");
}

#[test]
fn a_prompt_is_prefilled_in_large_chunks_beside_decoding_rows() {
    let stage = stage(2048, 2, true);
    let short = stage.engine.submit(vec![request(&[3], 8)]).unwrap();
    stage.gate.send(Permission::Go).unwrap();
    assert!(matches!(short[0].events.recv_timeout(PATIENCE), Ok(Event::Token { .. })));
    let long = stage.engine.submit(vec![request(&[5; 1200], 1)]).unwrap();
    drop(stage.gate);
    assert_eq!(wait(&long[0]).0, [6]);
    assert_eq!(wait(&short[0]).0, [5, 6, 7, 8, 9, 10, 11]);
    let seen = stage.seen.lock().unwrap();
    let chunks: Vec<&Seen> = seen.iter().flatten().filter(|run| run.slot == Slot(1)).collect();
    assert_eq!(chunks.iter().map(|run| run.n_tokens).sum::<usize>(), 1200);
    assert!(chunks.len() <= 3, "{chunks:?}");
    assert!(chunks.iter().rev().skip(1).all(|run| run.want == Want::None));
    let mixed = seen.iter().filter(|batch| batch.len() == 2).count();
    assert_eq!(mixed, chunks.len(), "each chunk shares its forward pass with the decoding row");
}

#[test]
fn prompt_logprobs_ask_for_a_chunk_of_rows_at_a_time() {
    let stage = stage(1024, 4, false);
    let scored = |n: usize, max_gen_len| {
        let prompt: Vec<u32> = (0..n as u32).map(|i| i % VOCAB as u32).collect();
        Request { prompt_logprobs: true, logprobs: true, ..request(&prompt, max_gen_len) }
    };
    let submissions = stage.engine.submit(vec![scored(1024, 0), scored(700, 2), scored(1, 0)]).unwrap();
    for (submission, n) in submissions.iter().zip([1024, 700, 1]) {
        let Ok(Event::PromptLogprobs(logprobs)) = submission.events.recv_timeout(PATIENCE) else {
            panic!("prompt logprobs come first");
        };
        assert_eq!(logprobs.len(), n);
        assert_eq!(logprobs[0], 0.0);
        // Each token of the prompt is the one that the script expects.
        let expected = 5.0 - (5.0f32.exp() + 15.0).ln();
        assert!(logprobs[1..].iter().all(|logprob| (logprob - expected).abs() < 1e-5));
        wait(submission).1.unwrap();
    }
    for batch in stage.seen.lock().unwrap().iter() {
        let rows: usize = batch.iter().map(|run| run.want.n_rows(run.n_tokens)).sum();
        assert!(rows <= MAX_PROMPT_ROWS + batch.len(), "{batch:?}");
    }
}

#[test]
fn nothing_is_computed_for_nothing() {
    let stage = stage(8, 1, false);
    assert!(
        matches!(&run(&stage, vec![request(&[3; 8], 0)])[0], (tokens, Ok(FinishReason::Length)) if tokens.is_empty())
    );
    assert!(stage.seen.lock().unwrap().is_empty());
}

#[test]
fn two_threads_share_a_forward_pass() {
    let stage = stage(64, 4, true);
    let first = stage.engine.submit(vec![request(&[3], 3)]).unwrap();
    let second = std::thread::scope(|scope| {
        let engine = &stage.engine;
        scope.spawn(move || engine.submit(vec![request(&[7], 3)]).unwrap()).join().unwrap()
    });
    drop(stage.gate);
    assert_eq!(wait(&first[0]).0, [4, 5, 6]);
    assert_eq!(wait(&second[0]).0, [8, 9, 10]);
    assert!(stage.seen.lock().unwrap().iter().any(|batch| batch.len() == 2));
}

#[test]
fn a_failed_forward_fails_its_own_requests_and_frees_their_slots() {
    let stage = stage(64, 1, true);
    let submissions = stage.engine.submit(vec![request(&[3], 3), request(&[7], 2)]).unwrap();
    stage.gate.send(Permission::Fail).unwrap();
    drop(stage.gate);
    assert!(matches!(wait(&submissions[0]), (tokens, Err(GenerateError::Backend(_))) if tokens.is_empty()));
    assert_eq!(wait(&submissions[1]).0, [8, 9], "the one that waited goes on");
}

#[test]
fn a_cancelled_request_frees_its_slot() {
    let stage = stage(64, 1, true);
    let submissions = stage.engine.submit(vec![request(&[3], 50), request(&[7], 2)]).unwrap();
    stage.gate.send(Permission::Go).unwrap();
    assert!(matches!(submissions[0].events.recv_timeout(PATIENCE), Ok(Event::Token { .. })));
    stage.engine.cancel(submissions[0].id).unwrap();
    drop(stage.gate);
    assert!(matches!(wait(&submissions[0]).1, Err(GenerateError::Cancelled)));
    assert_eq!(wait(&submissions[1]).0, [8, 9]);
    assert!(stage.seen.lock().unwrap().len() <= 5);
}

#[test]
fn a_listener_that_left_costs_nothing_more() {
    let stage = stage(64, 1, true);
    drop(stage.engine.submit(vec![request(&[3], 50)]).unwrap());
    drop(stage.gate);
    assert_eq!(run_one(&stage.engine), [8, 9]);
    assert_eq!(stage.seen.lock().unwrap().len(), 3, "one step for the dropped one, two for the other");
}

fn run_one(engine: &Engine) -> Vec<u32> {
    wait(&engine.submit(vec![request(&[7], 2)]).unwrap()[0]).0
}

#[test]
fn a_model_that_panics_or_does_not_load_is_an_error() {
    let stage = stage(64, 1, true);
    let submissions = stage.engine.submit(vec![request(&[3], 3)]).unwrap();
    stage.gate.send(Permission::Panic).unwrap();
    assert!(matches!(wait(&submissions[0]).1, Err(GenerateError::Stopped)));
    let error = Engine::start(|| Err(BackendError::EmptyBatch)).unwrap_err();
    assert!(matches!(error, crate::Error::Backend(BackendError::EmptyBatch)));
}

proptest! {
    /// Whatever is asked, in whatever order: every job's tokens are fed once and in order, never more than the limits.
    #[test]
    fn every_token_is_fed_once(
        jobs in prop::collection::vec((1usize..900, 0usize..6, any::<bool>()), 1..12),
        n_slots in 1usize..5,
        chunk in 1usize..600,
    ) {
        let max_batch_tokens = n_slots + chunk;
        let mut scheduler = Scheduler::new(n_slots, max_batch_tokens);
        for (i, &(n_prefill, _, all_rows)) in jobs.iter().enumerate() {
            scheduler.submit(Job { id: RequestId(i as u64), n_prefill, all_rows });
        }
        let mut fed = vec![0; jobs.len()];
        while !scheduler.is_idle() {
            let steps = scheduler.plan();
            prop_assert!(!steps.is_empty(), "a scheduler that is not idle has work");
            prop_assert!(steps.iter().map(|step| step.n_tokens).sum::<usize>() <= max_batch_tokens);
            let mut slots: Vec<_> = steps.iter().map(|step| step.slot).collect();
            slots.sort_unstable();
            slots.dedup();
            prop_assert_eq!(slots.len(), steps.len(), "a slot of its own for each");
            for step in &steps {
                let i = step.id.0 as usize;
                let (n_prefill, n_decode, all_rows) = jobs[i];
                prop_assert_eq!(step.start_pos, fed[i]);
                fed[i] += step.n_tokens;
                let ends_known = fed[i] >= n_prefill;
                let expected = match (all_rows && step.start_pos < n_prefill, ends_known) {
                    (true, _) => Want::All,
                    (false, true) => Want::Last,
                    (false, false) => Want::None,
                };
                prop_assert_eq!(step.want, expected);
                scheduler.fed(step);
                if fed[i] == n_prefill + n_decode {
                    prop_assert_eq!(scheduler.finish(step.id), Some(step.slot));
                } else if ends_known {
                    scheduler.sampled(step.id);
                }
            }
        }
        for (i, &(n_prefill, n_decode, _)) in jobs.iter().enumerate() {
            prop_assert_eq!(fed[i], n_prefill + n_decode);
        }
    }
}
