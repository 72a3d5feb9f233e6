//! A loaded graph of another maker's: which runs of the engine a batch needs, and what is bound to them.
//!
//! As for our own graph, all runs of one token go together, and every other is one of its own. Both conventions compute the
//! logits of every token; only the wanted rows are handed on.

use llama_backend::{
    BackendError, Batch, LoadParams, Logits, Model, ModelConfig, Run, Slot, Slots, TokenId, Want,
};

use super::interface::{Interface, Style};
use crate::engine;
use crate::kv_cache::KvCache;
use crate::sys::Bound;

/// A loaded graph.
#[derive(Debug)]
pub(crate) struct FileModel {
    bound: Bound,
    interface: Interface,
    cache: KvCache,
    slots: Slots,
    config: ModelConfig,
    params: LoadParams,
    /// `[B, S, vocab_size]` of the run before.
    logits: Vec<f32>,
    /// Where the cache grows: `past` and `present` of each plane in the run before.
    grown: Vec<[Vec<f32>; 2]>,
}

/// One run of the engine: sequences that get as many tokens each.
struct Pass {
    /// By sequence.
    slots: Vec<usize>,
    /// By sequence: how many positions it holds before.
    lens: Vec<usize>,
    /// `[B, S]`.
    tokens: Vec<i64>,
    /// `S`.
    n: usize,
}

impl FileModel {
    pub(super) fn new(
        bound: Bound,
        interface: Interface,
        cache: KvCache,
        slots: Slots,
        config: ModelConfig,
        params: LoadParams,
    ) -> Self {
        let grown = match interface.style {
            Style::Growing => vec![Default::default(); interface.cache_names.len()],
            Style::InPlace => Vec::new(),
        };
        Self { bound, interface, cache, slots, config, params, logits: Vec::new(), grown }
    }

    /// Tries a step of one token. The slots are as empty as before.
    pub(super) fn probe(&mut self) -> Result<(), BackendError> {
        let run = Run { slot: Slot(0), start_pos: 0, tokens: &[TokenId(0)], want: Want::Last };
        self.forward(&Batch::new(&[run]), &mut Logits::new())?;
        self.truncate(Slot(0), 0)
    }

    /// Runs that go together, each with where its logits belong.
    fn run(&mut self, mut runs: Vec<(&Run<'_>, &mut [f32])>) -> Result<(), BackendError> {
        if self.interface.style == Style::InPlace && runs.len() > 1 {
            // Rows that follow each other, and sequences in their order. Decodes come first, so that all that any slot holds is
            // within its length; a run alone stays where it is.
            let slots: Vec<usize> = runs.iter().map(|(run, _)| run.slot.0).collect();
            let n_slots = self.params.n_slots;
            let lens = (0..n_slots).map(|slot| self.slots.len(Slot(slot))).collect::<Result<Vec<_>, _>>()?;
            self.cache.side_by_side(&slots, &lens);
            runs.sort_by_key(|(run, _)| self.cache.row_of(run.slot.0));
        }
        let n = runs.first().map_or(0, |(run, _)| run.tokens.len());
        let pass = Pass {
            slots: runs.iter().map(|(run, _)| run.slot.0).collect(),
            lens: runs.iter().map(|(run, _)| run.start_pos).collect(),
            tokens: runs.iter().flat_map(|(run, _)| run.tokens).map(|token| i64::from(token.0)).collect(),
            n,
        };
        self.logits.resize(pass.tokens.len() * self.config.vocab_size, 0.0);
        match self.interface.style {
            Style::InPlace => self.in_place(&pass)?,
            Style::Growing => self.growing(&pass)?,
        }
        let computed = self.logits.chunks_exact(n * self.config.vocab_size); // [S, vocab_size] of each sequence
        for ((_, out), computed) in runs.into_iter().zip(computed) {
            out.copy_from_slice(&computed[computed.len() - out.len()..]);
        }
        Ok(())
    }

    /// Sequences are padded on the right, and their rows of the cache are written where they lie.
    fn in_place(&mut self, pass: &Pass) -> Result<(), BackendError> {
        let int = |n: usize| n as i64; // sizes of memory
        let Pass { slots, lens, tokens, n } = pass;
        let shape = self.cache.shape;
        let first = slots.first().map_or(0, |&slot| self.cache.row_of(slot));
        let longest = lens.iter().max().map_or(0, |len| len + n);
        // The graph takes the lengths from the mask, and a wrong one would let it write beyond a row.
        if longest > shape.max_seq_len {
            return Err(engine(format!("{longest} positions in rows of {}", shape.max_seq_len)));
        }
        let mask: Vec<i64> =
            lens.iter().flat_map(|len| (0..longest).map(move |pos| i64::from(pos < len + n))).collect();
        let past = [slots.len(), shape.n_kv_heads, shape.max_seq_len, shape.width].map(int);
        let (names, cache, logits) = (&self.interface.cache_names, &mut self.cache, &mut self.logits);
        let out = [slots.len(), *n, self.config.vocab_size].map(int);
        let result = self.bound.run(|bind| {
            bind.input(c"input_ids", &[int(slots.len()), int(*n)], tokens)?;
            bind.input(c"attention_mask", &[int(slots.len()), int(longest)], &mask)?;
            for ([input, output], rows) in names.iter().zip(cache.rows(first..first + slots.len())) {
                bind.in_place([input, output], &past, rows)?;
            }
            bind.output(c"logits", &out, logits)
        });
        result.map_err(engine)
    }

    /// Sequences are padded on the left. What each holds is laid out anew for the run, and what it gains is taken back.
    fn growing(&mut self, pass: &Pass) -> Result<(), BackendError> {
        let int = |n: usize| n as i64; // sizes of memory
        let Pass { slots, lens, tokens, n } = pass;
        let shape = self.cache.shape;
        let held = lens.iter().copied().max().unwrap_or(0);
        let mask: Vec<i64> =
            lens.iter().flat_map(|len| (0..held + n).map(move |pos| i64::from(pos >= held - len))).collect();
        let positions: Vec<i64> = lens.iter().flat_map(|len| (*len..len + n).map(int)).collect();

        let n_rows = slots.len() * shape.n_kv_heads;
        for (plane, [past, present]) in self.grown.iter_mut().enumerate() {
            past.clear();
            past.resize(n_rows * held * shape.width, 0.0);
            present.resize(n_rows * (held + n) * shape.width, 0.0);
            for (i, (&slot, &len)) in slots.iter().zip(lens).enumerate() {
                for head in 0..shape.n_kv_heads {
                    let end = (i * shape.n_kv_heads + head + 1) * held * shape.width;
                    let from = &self.cache.head(plane, slot, head)[..len * shape.width];
                    past[end - from.len()..end].copy_from_slice(from);
                }
            }
        }
        let names = &self.interface.cache_names;
        let cached = |len: usize| [slots.len(), shape.n_kv_heads, len, shape.width].map(int);
        let (grown, logits) = (&mut self.grown, &mut self.logits);
        let out = [slots.len(), *n, self.config.vocab_size].map(int);
        let result = self.bound.run(|bind| {
            bind.input(c"input_ids", &[int(slots.len()), int(*n)], tokens)?;
            bind.input(c"attention_mask", &[int(slots.len()), int(held + n)], &mask)?;
            bind.input(c"position_ids", &[int(slots.len()), int(*n)], &positions)?;
            for ([input, output], [past, present]) in names.iter().zip(grown) {
                bind.input(input, &cached(held), past)?;
                bind.output(output, &cached(held + n), present)?;
            }
            bind.output(c"logits", &out, logits)
        });
        result.map_err(engine)?;
        for (plane, [_, present]) in self.grown.iter().enumerate() {
            for (i, (&slot, &len)) in slots.iter().zip(lens).enumerate() {
                for head in 0..shape.n_kv_heads {
                    let end = (i * shape.n_kv_heads + head + 1) * (held + n) * shape.width;
                    let gained = &present[end - n * shape.width..end];
                    let to = len * shape.width..(len + n) * shape.width;
                    self.cache.head_mut(plane, slot, head)[to].copy_from_slice(gained);
                }
            }
        }
        Ok(())
    }
}

impl Model for FileModel {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn params(&self) -> &LoadParams {
        &self.params
    }

    fn forward(&mut self, batch: &Batch<'_>, out: &mut Logits) -> Result<(), BackendError> {
        self.slots.check(batch)?;
        if self.slots.is_empty() {
            self.cache.reset();
        }
        let mut rest = out.reset(batch.n_rows(), self.config.vocab_size);
        let (mut decodes, mut prefills) = (Vec::new(), Vec::new());
        for run in batch.runs {
            let (logits, after) = rest.split_at_mut(run.n_rows() * self.config.vocab_size);
            rest = after;
            match run.tokens.len() {
                1 => decodes.push((run, logits)),
                _ => prefills.push(vec![(run, logits)]),
            }
        }
        let decodes = (!decodes.is_empty()).then_some(decodes);
        for together in decodes.into_iter().chain(prefills) {
            self.run(together)?;
        }
        // Until here the new positions lie beyond every slot's length, where nobody reads.
        self.slots.advance(batch);
        Ok(())
    }

    fn truncate(&mut self, slot: Slot, len: usize) -> Result<(), BackendError> {
        self.slots.truncate(slot, len)
    }

    fn fork(&mut self, from: Slot, to: Slot, len: usize) -> Result<(), BackendError> {
        self.slots.fork(from, to, len)?;
        self.cache.copy(from.0, to.0, len);
        Ok(())
    }
}
