//! The measurement: a model is loaded, and prompts and answers of random tokens go through [`Model::forward`].
//!
//! As llama.cpp's program does, a prompt starts in an empty slot (or after `depth` positions), an answer too; each is done once
//! before it is measured, and nothing is sampled: tokens are drawn beforehand. Just before and just after each repetition it is measured
//! what the machine can do: on one that is shared, that changes from second to second.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use llama_backend::testing::Rng;
use llama_backend::{
    Backend, Batch, LoadParams, Logits, Model, ModelConfig, ModelSource, Run, Slot, TokenId, Want,
};
use llama_core::checkpoint::{self, Checkpoint};

use super::flags::Plan;
use super::work::{Weights, prefill_flops};
use crate::Error;
use crate::bandwidth::Bandwidth;
use crate::fma;
use crate::memory::{Memory, forget_peak, memory};

/// What was measured of one model on so many threads.
#[derive(Debug, Clone)]
pub struct Session {
    /// The shape.
    pub config: ModelConfig,
    /// What its tensors take; `None` for a graph.
    pub weights: Option<Weights>,
    /// The engine's name.
    pub backend: &'static str,
    /// The threads of everything.
    pub threads: usize,
    /// From opening the file to a model that can be asked.
    pub load: Duration,
    /// What the process took, the most of it and at the end.
    pub memory: Option<Memory>,
    /// What the engine says that it takes: weights, KV cache and scratch.
    pub planned: Option<u64>,
    /// The bytes a second that memory gave, the most that were measured.
    pub bandwidth: Option<f64>,
    /// The operations a second in registers, likewise.
    pub fma: Option<f64>,
    /// A row for each test.
    pub tests: Vec<Test>,
}

/// What was measured of one prompt or answer.
#[derive(Debug, Clone)]
pub struct Test {
    /// What it was.
    pub kind: Kind,
    /// Positions filled before.
    pub depth: usize,
    /// Each repetition.
    pub times: Vec<Duration>,
    /// What the machine could do during each, a second: bytes of memory for an answer, operations in registers for a prompt.
    pub limits: Vec<f64>,
}

/// A prompt or an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// So many tokens of one sequence, for the logits after the last.
    Prompt(usize),
    /// So many tokens of each of so many sequences, one at a time.
    Answer {
        /// Tokens of each sequence.
        n: usize,
        /// Sequences.
        batch: usize,
    },
}

impl Test {
    /// The tokens of a repetition.
    #[must_use]
    pub fn n_tokens(&self) -> usize {
        match self.kind {
            Kind::Prompt(n) => n,
            Kind::Answer { n, batch } => n * batch,
        }
    }

    /// The tokens a second of each repetition.
    #[must_use]
    pub fn rates(&self) -> Vec<f64> {
        self.times.iter().map(|time| self.n_tokens() as f64 / time.as_secs_f64()).collect()
    }

    /// The middle time.
    #[must_use]
    pub fn median(&self) -> f64 {
        crate::marks::median(&self.times)
    }
}

impl Session {
    /// The share of what the machine could do at the time that a test reached, in the middle: of the bandwidth for an answer, of the FMA
    /// peak for a prompt.
    #[must_use]
    pub fn share(&self, test: &Test) -> Option<f64> {
        let work = match test.kind {
            Kind::Prompt(n) => prefill_flops(&self.config, n, test.depth),
            Kind::Answer { n, .. } => self.weights.as_ref()?.decode_bytes as f64 * n as f64,
        };
        let shares =
            test.times.iter().zip(&test.limits).map(|(time, limit)| work / time.as_secs_f64() / limit);
        crate::compare::median(shares)
    }
}

/// Measures everything that a plan asks for, once for each number of threads.
///
/// # Errors
///
/// What the checkpoint's reader or the engine says.
pub fn measure(path: &Path, backend: &Arc<dyn Backend>, plan: &Plan) -> Result<Vec<Session>, Error> {
    plan.threads.iter().map(|&threads| session(path, backend, plan, threads)).collect()
}

fn session(path: &Path, backend: &Arc<dyn Backend>, plan: &Plan, threads: usize) -> Result<Session, Error> {
    forget_peak();
    let start = Instant::now();
    let checkpoint = checkpoint::open(path)?;
    let params = params(plan, threads);
    let model = backend.load(source(&checkpoint, &**backend), &params)?;
    let load = start.elapsed();
    let config = checkpoint.config().clone();
    let weights = match checkpoint.source() {
        ModelSource::Weights(weights) => Some(Weights::of(&*weights)?),
        _ => None,
    };
    let planned = weights.as_ref().map(|weights| backend.plan(&config, weights.dtype, &params).total());
    let machine = Machine { threads, bandwidth: None, fma: None, peak: 0 };
    let mut bench = Bench { model, tokens: tokens(&config, plan), logits: Logits::new(), plan, machine };
    let tests = bench.run()?;
    let machine = bench.machine;
    Ok(Session {
        config,
        weights,
        backend: backend.name(),
        threads,
        load,
        memory: memory().map(|memory| Memory { peak: memory.peak.max(machine.peak), ..memory }),
        planned,
        bandwidth: machine.bandwidth,
        fma: machine.fma,
        tests,
    })
}

fn source(checkpoint: &Checkpoint, backend: &dyn Backend) -> ModelSource {
    match checkpoint.source() {
        ModelSource::Weights(_) => ModelSource::Weights(checkpoint.weights_for(backend)),
        graph => graph,
    }
}

fn params(plan: &Plan, threads: usize) -> LoadParams {
    let most = |n: &[usize]| n.iter().copied().max().unwrap_or(0);
    let max_seq_len = most(&plan.depths) + most(&plan.prompts).max(most(&plan.answers));
    let n_slots = if plan.answers.is_empty() { 1 } else { most(&plan.batches) };
    let mut params = LoadParams::new(max_seq_len, n_slots);
    params.max_batch_tokens = plan.max_batch_tokens.max(n_slots);
    params.threads = Some(threads);
    params
}

/// What the machine can do, measured again and again.
struct Machine {
    threads: usize,
    /// The most of each.
    bandwidth: Option<f64>,
    fma: Option<f64>,
    /// The most memory that the process has taken, but for what this takes.
    peak: u64,
}

impl Machine {
    /// What limits a test now: see [`Test::limits`].
    fn limit(&mut self, kind: Kind) -> Result<f64, Error> {
        let (now, most) = match kind {
            Kind::Prompt(_) => (fma::peak(self.threads), &mut self.fma),
            Kind::Answer { .. } => {
                self.peak = self.peak.max(memory().map_or(0, |memory| memory.peak));
                let memory = Bandwidth::new(self.threads)?;
                let bandwidth = memory.bytes() as f64 / memory.read().as_secs_f64();
                drop(memory);
                forget_peak();
                (bandwidth, &mut self.bandwidth)
            }
        };
        *most = Some(most.map_or(now, |most| most.max(now)));
        Ok(now)
    }
}

/// As many tokens as any test feeds to a slot.
fn tokens(config: &ModelConfig, plan: &Plan) -> Vec<TokenId> {
    let mut rng = Rng::new(plan.seed);
    // Vocabularies are smaller than 2^32.
    (0..params(plan, 1).max_seq_len).map(|_| TokenId(rng.below(config.vocab_size) as u32)).collect()
}

struct Bench<'a> {
    model: Box<dyn Model>,
    tokens: Vec<TokenId>,
    logits: Logits,
    plan: &'a Plan,
    machine: Machine,
}

impl Bench<'_> {
    fn run(&mut self) -> Result<Vec<Test>, Error> {
        let plan = self.plan;
        let prompts = plan.prompts.iter().map(|&n| Kind::Prompt(n));
        let answers = plan
            .answers
            .iter()
            .flat_map(|&n| plan.batches.iter().map(move |&batch| Kind::Answer { n, batch }));
        let kinds: Vec<_> = prompts.chain(answers).collect();
        let mut tests = Vec::new();
        for &depth in &plan.depths {
            for &kind in &kinds {
                tests.push(self.test(kind, depth)?);
            }
        }
        Ok(tests)
    }

    fn test(&mut self, kind: Kind, depth: usize) -> Result<Test, Error> {
        let n_slots = match kind {
            Kind::Prompt(_) => 1,
            Kind::Answer { batch, .. } => batch,
        };
        self.fill(depth, n_slots)?;
        let mut times = Vec::new();
        let mut limits = Vec::new();
        for repetition in 0..=self.plan.repetitions {
            for slot in 0..n_slots {
                self.model.truncate(Slot(slot), depth)?;
            }
            let start = Instant::now();
            match kind {
                Kind::Prompt(n) => self.prompt(depth, n)?,
                // The first time is for the caches: a few tokens do.
                Kind::Answer { n, batch } if repetition == 0 => self.answer(depth, n.min(4), batch)?,
                Kind::Answer { n, batch } => self.answer(depth, n, batch)?,
            }
            if repetition > 0 {
                times.push(start.elapsed());
            }
            limits.push(self.machine.limit(kind)?);
        }
        let limits = limits.windows(2).map(|around| (around[0] + around[1]) / 2.0).collect();
        Ok(Test { kind, depth, times, limits })
    }

    /// Gives so many slots the same first positions.
    fn fill(&mut self, depth: usize, n_slots: usize) -> Result<(), Error> {
        for slot in 0..self.model.params().n_slots {
            self.model.truncate(Slot(slot), 0)?;
        }
        if depth > 0 {
            self.prompt(0, depth)?;
            for slot in 1..n_slots {
                self.model.fork(Slot(0), Slot(slot), depth)?;
            }
        }
        Ok(())
    }

    /// Appends `n` tokens to the first slot, and takes the logits after the last.
    fn prompt(&mut self, depth: usize, n: usize) -> Result<(), Error> {
        let end = depth + n;
        for start_pos in (depth..end).step_by(self.plan.max_batch_tokens) {
            let stop = end.min(start_pos + self.plan.max_batch_tokens);
            let want = if stop == end { Want::Last } else { Want::None };
            let run = Run { slot: Slot(0), start_pos, tokens: &self.tokens[start_pos..stop], want };
            self.model.forward(&Batch::new(&[run]), &mut self.logits)?;
        }
        Ok(())
    }

    /// Appends `n` tokens to each of the first slots, one at a time.
    fn answer(&mut self, depth: usize, n: usize, batch: usize) -> Result<(), Error> {
        let mut runs = Vec::with_capacity(batch);
        for start_pos in depth..depth + n {
            let tokens = &self.tokens[start_pos..=start_pos];
            runs.clear();
            runs.extend((0..batch).map(|slot| Run { slot: Slot(slot), start_pos, tokens, want: Want::Last }));
            self.model.forward(&Batch::new(&runs), &mut self.logits)?;
        }
        Ok(())
    }
}
