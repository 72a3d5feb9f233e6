//! The law that holds the others together: any history of calls, checked against lists of tokens.

use super::super::oracle::Oracle;
use super::super::random::Rng;
use super::super::rig::{Feed, Rig};
use super::super::suite::{Checked, Suite};
use crate::{LoadParams, TokenId, Want};
use std::collections::HashMap;

const N_SLOTS: usize = 4;
const MAX_SEQ_LEN: usize = 20;
const N_STEPS: usize = 300;

pub(super) fn random_histories_equal_the_oracle(suite: &Suite<'_>) -> Checked {
    let weights = suite.weights(90);
    let mut history = History {
        suite,
        rig: suite.load(&weights, &LoadParams::new(MAX_SEQ_LEN, N_SLOTS))?,
        oracle: Oracle::new(&*weights)?,
        known: HashMap::new(),
        held: vec![Vec::new(); N_SLOTS],
        rng: Rng::new(91),
    };
    for step in 0..N_STEPS {
        let call = match history.rng.below(10) {
            0..=6 => history.forward(),
            7 => history.truncate(),
            _ => history.fork(),
        };
        call.map_err(|broken| broken.at(format_args!("step {step}")))?;
    }
    Ok(())
}

struct History<'a> {
    suite: &'a Suite<'a>,
    rig: Rig,
    oracle: Oracle,
    /// The row after each sequence that the oracle has seen.
    known: HashMap<Vec<TokenId>, Vec<f32>>,
    /// What each slot should hold.
    held: Vec<Vec<TokenId>>,
    rng: Rng,
}

impl History<'_> {
    /// Runs for some of the slots that have room, in some order, with some wants.
    fn forward(&mut self) -> Checked {
        let mut runs: Vec<(usize, Vec<TokenId>, Want)> = Vec::new();
        for slot in self.some_order() {
            let room = MAX_SEQ_LEN - self.held[slot].len();
            if room == 0 {
                // A full slot makes room, so that histories do not end in full slots.
                self.rig.truncate(slot, 0)?;
                self.held[slot].clear();
            } else if runs.is_empty() || self.rng.below(2) == 0 {
                let n = 1 + self.rng.below(room.min(6));
                let token = |_| TokenId(self.rng.below(self.suite.config().vocab_size) as u32);
                let tokens = (0..n).map(token).collect();
                let want = [Want::None, Want::Last, Want::All][self.rng.below(3)];
                runs.push((slot, tokens, want));
            }
        }
        if runs.is_empty() {
            return Ok(());
        }
        let feeds: Vec<Feed<'_>> =
            runs.iter().map(|(slot, tokens, want)| (*slot, &tokens[..], *want)).collect();
        let rows = self.rig.step(&feeds)?;
        for ((slot, tokens, want), rows) in runs.iter().zip(rows) {
            let start = self.held[*slot].len();
            self.held[*slot].extend(tokens);
            let end = self.held[*slot].len();
            let wanted = match want {
                Want::None => end..end,
                Want::Last => end - 1..end,
                Want::All => start..end,
            };
            let expected: Vec<Vec<f32>> = wanted.map(|position| self.expected(*slot, position)).collect();
            self.suite
                .is_exact(&rows, &expected)
                .map_err(|broken| broken.at(format_args!("slot {slot}, positions {start}..{end}")))?;
        }
        Ok(())
    }

    fn truncate(&mut self) -> Checked {
        let slot = self.rng.below(N_SLOTS);
        let len = self.rng.below(self.held[slot].len() + 1);
        self.held[slot].truncate(len);
        self.rig.truncate(slot, len)
    }

    fn fork(&mut self) -> Checked {
        let (from, to) = (self.rng.below(N_SLOTS), self.rng.below(N_SLOTS));
        let len = self.rng.below(self.held[from].len() + 1);
        self.held[to] = self.held[from][..len].to_vec();
        self.rig.fork(from, to, len)
    }

    /// The oracle's row after a position of what the slot holds.
    fn expected(&mut self, slot: usize, position: usize) -> Vec<f32> {
        let held = &self.held[slot];
        if !self.known.contains_key(&held[..=position]) {
            for (i, row) in self.oracle.logits(held, 0).into_iter().enumerate() {
                self.known.insert(held[..=i].to_vec(), row);
            }
        }
        self.known[&held[..=position]].clone()
    }

    /// All slots, shuffled.
    fn some_order(&mut self) -> [usize; N_SLOTS] {
        let mut order = std::array::from_fn(|slot| slot);
        for i in (1..N_SLOTS).rev() {
            order.swap(i, self.rng.below(i + 1));
        }
        order
    }
}
