//! The scheduler's laws, and the engine on a scripted model.

mod control;
mod prefixes;
mod schedule;

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use llama_backend::{
    BackendError, Batch, LoadParams, Logits, Model, ModelConfig, Slot, Slots, TokenId, Want,
};

use super::scheduler::MAX_PROMPT_ROWS;
use super::{
    Call, CancelToken, Engine, Event, FinishReason, GenerateError, Limits, NewToken, PromptLogprobs, Request,
    Submission, WhenFull,
};
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

/// Makes token `t + 1` follow token `t`, with a logprob that tells every token before it; records its batches; fails or waits when told to.
struct Scripted {
    config: ModelConfig,
    params: LoadParams,
    slots: Slots,
    /// What each slot holds.
    held: Vec<Vec<TokenId>>,
    seen: Arc<Mutex<Vec<Vec<Seen>>>>,
    /// When there is one, each forward waits for a permission; a closed gate stands open.
    gate: Option<Receiver<Permission>>,
    forks_fail: bool,
}

enum Permission {
    Go,
    Fail,
    Lose(Slot),
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
            Some(Permission::Lose(slot)) => {
                return Err(BackendError::SlotLost { slot, source: "told to lose it".into() });
            }
            Some(Permission::Panic) => panic!("told to panic"),
            Some(Permission::Go) | None => {}
        }
        self.slots.check(batch)?;
        let rows = out.reset(batch.n_rows(), VOCAB);
        let mut rows = rows.chunks_exact_mut(VOCAB);
        for run in batch.runs {
            let first = run.tokens.len() - run.n_rows();
            let held = &mut self.held[run.slot.0];
            held.truncate(run.start_pos);
            for (i, token) in run.tokens.iter().enumerate() {
                held.push(*token);
                if i >= first {
                    let row = rows.next().unwrap();
                    row.fill(0.0);
                    row[(token.0 as usize + 1) % VOCAB] = 5.0 + digest(held);
                }
            }
        }
        self.slots.advance(batch);
        Ok(())
    }

    fn truncate(&mut self, slot: Slot, len: usize) -> Result<(), BackendError> {
        self.slots.truncate(slot, len)
    }

    fn fork(&mut self, from: Slot, to: Slot, len: usize) -> Result<(), BackendError> {
        if self.forks_fail {
            return Err(BackendError::engine("scripted", "told to fail"));
        }
        self.held[to.0] = self.held[from.0][..len].to_vec();
        self.slots.fork(from, to, len)
    }
}

/// A small number that depends on every token and its place.
fn digest(tokens: &[TokenId]) -> f32 {
    let sum = tokens.iter().fold(7u32, |sum, token| sum.wrapping_mul(31).wrapping_add(token.0));
    (sum % 1009) as f32 / 1009.0
}

struct Stage {
    engine: Engine,
    seen: Arc<Mutex<Vec<Vec<Seen>>>>,
    gate: Sender<Permission>,
    /// What the clock says, since it was made.
    time: Arc<Mutex<Duration>>,
}

/// How a stage is set.
#[derive(Clone, Copy)]
struct Set {
    max_seq_len: usize,
    max_batch_size: usize,
    idle_slots: usize,
    max_queue_len: usize,
    gated: bool,
    forks_fail: bool,
}

impl Default for Set {
    fn default() -> Self {
        Self {
            max_seq_len: 64,
            max_batch_size: 1,
            idle_slots: 0,
            max_queue_len: 1000,
            gated: false,
            forks_fail: false,
        }
    }
}

impl Set {
    fn build(self) -> Stage {
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
        let params = Engine::params(self.max_seq_len, self.max_batch_size, self.idle_slots, None);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (gate, permissions) = mpsc::channel();
        let model = Scripted {
            slots: Slots::new(&config, &params),
            held: vec![Vec::new(); params.n_slots],
            config,
            params,
            seen: Arc::clone(&seen),
            gate: self.gated.then_some(permissions),
            forks_fail: self.forks_fail,
        };
        let time = Arc::new(Mutex::new(Duration::ZERO));
        let (start, told) = (Instant::now(), Arc::clone(&time));
        let clock = Arc::new(move || start + *told.lock().unwrap());
        let limits = Limits { max_batch_size: self.max_batch_size, max_queue_len: self.max_queue_len };
        Stage { engine: Engine::start(limits, clock, move || Ok(Box::new(model))).unwrap(), seen, gate, time }
    }
}

/// An engine on a scripted model, gated or not.
fn stage(max_seq_len: usize, max_batch_size: usize, gated: bool) -> Stage {
    Set { max_seq_len, max_batch_size, gated, ..Set::default() }.build()
}

impl Stage {
    fn go(&self, n: usize) {
        (0..n).for_each(|_| self.gate.send(Permission::Go).unwrap());
    }

    /// A call each, so that their events can be waited for one by one.
    fn submit(&self, requests: Vec<Request>) -> Vec<Submission> {
        requests.into_iter().map(|request| self.engine.submit(call(vec![request])).unwrap()).collect()
    }
}

fn call(requests: Vec<Request>) -> Call {
    Call { requests, cancel: CancelToken::new(), deadline: None, when_full: WhenFull::Wait }
}

fn request(prompt: &[u32], max_gen_len: usize) -> Request {
    Request {
        place: 0,
        prompt: prompt.iter().copied().map(TokenId).collect(),
        max_gen_len,
        eos_id: EOS,
        sampling: SamplingOptions { temperature: 0.0, ..Default::default() },
        seed: 1,
        row: 0,
        logprobs: false,
        top_logprobs: 0,
        prompt_logprobs: None,
    }
}

/// Tokens and their logprobs.
type Logged = Vec<(u32, Option<f32>)>;

/// The next event but the first, which every request has.
fn next(submission: &Submission) -> Event {
    loop {
        match submission.recv() {
            Some((_, Event::Started { .. })) => {}
            Some((_, event)) => return event,
            None => return Event::Failed(GenerateError::Stopped),
        }
    }
}

/// What is told of the prompt, which comes first.
fn scored(submission: &Submission) -> PromptLogprobs {
    match next(submission) {
        Event::PromptLogprobs(logprobs) => logprobs,
        other => panic!("{other:?}"),
    }
}

/// The tokens until the end, and how it ended.
fn wait(submission: &Submission) -> (Vec<u32>, Result<FinishReason, GenerateError>) {
    let (tokens, end) = wait_logprobs(submission);
    (tokens.into_iter().map(|(id, _)| id).collect(), end)
}

fn wait_logprobs(submission: &Submission) -> (Logged, Result<FinishReason, GenerateError>) {
    let mut tokens = Vec::new();
    loop {
        match next(submission) {
            Event::Token(NewToken { id, logprob, .. }) => tokens.push((id.0, logprob)),
            Event::PromptLogprobs(_) | Event::Started { .. } => {}
            Event::Finished(reason) => return (tokens, Ok(reason)),
            Event::Failed(error) => return (tokens, Err(error)),
        }
    }
}

/// All in one call: as many as there are slots for start in the same forward pass.
fn run(stage: &Stage, requests: Vec<Request>) -> Vec<(Vec<u32>, Result<FinishReason, GenerateError>)> {
    let n_requests = requests.len();
    let placed = requests.into_iter().enumerate().map(|(place, request)| Request { place, ..request });
    let submission = stage.engine.submit(call(placed.collect())).unwrap();
    let mut ended: Vec<_> = (0..n_requests).map(|_| (Vec::new(), Err(GenerateError::Stopped))).collect();
    while let Some((place, event)) = submission.recv() {
        match event {
            Event::Token(token) => ended[place].0.push(token.id.0),
            Event::Finished(reason) => ended[place].1 = Ok(reason),
            Event::Failed(error) => ended[place].1 = Err(error),
            Event::Started { .. } | Event::PromptLogprobs(_) => {}
        }
    }
    ended
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
    let short = stage.submit(vec![request(&[3], 8)]);
    stage.go(1);
    assert!(matches!(next(&short[0]), Event::Token(_)));
    let long = stage.submit(vec![request(&[5; 1200], 1)]);
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
    let score = |n: usize, max_gen_len| {
        let prompt: Vec<u32> = (0..n as u32).map(|i| i % VOCAB as u32).collect();
        Request { prompt_logprobs: Some(1), logprobs: true, ..request(&prompt, max_gen_len) }
    };
    let submissions = stage.submit(vec![score(1024, 0), score(700, 2), score(1, 0)]);
    for (submission, n) in submissions.iter().zip([1024, 700, 1]) {
        let PromptLogprobs { logprobs, is_greedy, .. } = scored(submission);
        assert!(is_greedy);
        assert_eq!(logprobs.len(), n - 1, "the first stands behind nothing");
        // Each token of the prompt is the one that the script expects.
        let least = 5.0 - (5.0f32.exp() + 15.0).ln();
        assert!(logprobs.iter().all(|&logprob| logprob >= least - 1e-5));
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
    let first = stage.submit(vec![request(&[3], 3)]);
    let second = std::thread::scope(|scope| {
        let engine = &stage.engine;
        scope.spawn(move || engine.submit(call(vec![request(&[7], 3)])).unwrap()).join().unwrap()
    });
    drop(stage.gate);
    assert_eq!(wait(&first[0]).0, [4, 5, 6]);
    assert_eq!(wait(&second).0, [8, 9, 10]);
    assert!(stage.seen.lock().unwrap().iter().any(|batch| batch.len() == 2));
}
