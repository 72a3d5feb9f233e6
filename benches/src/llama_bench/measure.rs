//! The measurement: a model is loaded, and prompts and answers of random tokens go through [`Model::forward`].
//!
//! As llama.cpp's program does, a prompt starts in an empty slot (or after `depth` positions), an answer too; each is done once
//! before it is measured, and nothing is sampled: tokens are drawn beforehand. Memory's and the units' speed are measured just before the
//! model is loaded and just after it is gone, so that their gibibyte is never beside it.

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
    /// The bytes a second that memory gives.
    pub bandwidth: f64,
    /// The operations a second in registers.
    pub fma: f64,
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
    /// The share of what the machine could do that a test reached, by its middle time: of the bandwidth for an answer, of the FMA peak for a
    /// prompt.
    #[must_use]
    pub fn share(&self, test: &Test) -> Option<f64> {
        match test.kind {
            Kind::Prompt(n) => Some(prefill_flops(&self.config, n, test.depth) / test.median() / self.fma),
            Kind::Answer { n, .. } => {
                let bytes = self.weights.as_ref()?.decode_bytes as f64 * n as f64;
                Some(bytes / test.median() / self.bandwidth)
            }
        }
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
    let before = bandwidth(threads)?;
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
    let mut bench = Bench { model, tokens: tokens(&config, plan), logits: Logits::new(), plan };
    let tests = bench.run()?;
    let memory = memory();
    drop(bench);
    Ok(Session {
        config,
        weights,
        backend: backend.name(),
        threads,
        load,
        memory,
        planned,
        bandwidth: before.max(bandwidth(threads)?),
        fma: fma::peak(threads),
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

/// The best of a few readings: they last hundredths of a second, in which a machine that is shared may be anywhere.
fn bandwidth(threads: usize) -> Result<f64, Error> {
    const READINGS: usize = 3;
    let memory = Bandwidth::new(threads)?;
    let best = (0..READINGS).map(|_| memory.read()).min().unwrap_or(Duration::MAX); // there are three
    Ok(memory.bytes() as f64 / best.as_secs_f64())
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
        }
        Ok(Test { kind, depth, times })
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
