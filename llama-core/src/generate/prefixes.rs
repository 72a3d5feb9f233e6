//! Which tokens each slot of the KV cache holds, and which slot a new prompt gets: reuse by longest common prefix.
//!
//! Keys and values depend on the tokens before them and on nothing else, so a slot that is given back keeps what it holds until it is needed
//! for something else. A new prompt goes on where the longest common prefix ends: in that slot itself, if what it holds is mostly this
//! prefix (a conversation that goes on), otherwise in the slot that has been unused for longest, with a copy of the prefix (another
//! conversation that begins alike). No more than a count of use is kept: no tree, no hashes. Prompts are compared token by token, which
//! costs nothing beside a forward pass.

use llama_backend::{Slot, TokenId};

/// How many tokens they begin with in common.
pub(super) fn common_prefix(a: &[TokenId], b: &[TokenId]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Where a prompt goes, and what is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Placement {
    pub(super) slot: Slot,
    /// The slot to copy the prefix from; `None`: it lies in `slot` itself.
    pub(super) from: Option<Slot>,
    /// Tokens of the prefix.
    pub(super) len: usize,
    /// Whether the slot held a prefix that is dropped.
    pub(super) evicts: bool,
}

/// The slots of a model, as far as their content goes.
#[derive(Debug)]
pub(super) struct Prefixes {
    slots: Vec<Held>,
    now: u64,
}

#[derive(Debug, Default)]
struct Held {
    /// The tokens whose keys and values the slot holds.
    tokens: Vec<TokenId>,
    busy: bool,
    last_used: u64,
}

impl Prefixes {
    pub(super) fn new(n_slots: usize) -> Self {
        Self { slots: (0..n_slots).map(|_| Held::default()).collect(), now: 0 }
    }

    /// How many of the prompt's first tokens any slot holds.
    pub(super) fn longest(&self, prompt: &[TokenId]) -> usize {
        self.slots.iter().map(|held| common_prefix(&held.tokens, prompt)).max().unwrap_or(0)
    }

    /// Takes a slot for a prompt, given without the tokens that must be fed in any case; `None` when all slots are busy. The model must
    /// then do as the placement says.
    pub(super) fn place(&mut self, prompt: &[TokenId]) -> Option<Placement> {
        let common: Vec<usize> = self.slots.iter().map(|held| common_prefix(&held.tokens, prompt)).collect();
        let idle = || (0..self.slots.len()).filter(|&slot| !self.slots[slot].busy);
        // An empty slot was never used, or lost its content: the first to take.
        let oldest = idle().min_by_key(|&slot| {
            let held = &self.slots[slot];
            (!held.tokens.is_empty(), held.last_used)
        })?;
        // Of those that hold most of the prompt, an idle one that loses least.
        let source = (0..self.slots.len()).max_by_key(|&slot| {
            let held = &self.slots[slot];
            (common[slot], !held.busy, std::cmp::Reverse(held.tokens.len()), std::cmp::Reverse(slot))
        })?;
        let (held, len) = (&self.slots[source], common[source]);
        let goes_on = !held.busy && 2 * len >= held.tokens.len() && len > 0;
        self.now += 1;
        let (slot, from) = match () {
            () if len == 0 => (oldest, None),
            () if goes_on || source == oldest => (source, None),
            () => {
                // Being copied from is a use too.
                self.slots[source].last_used = self.now;
                (oldest, Some(Slot(source)))
            }
        };
        let evicts = !goes_on && !self.slots[slot].tokens.is_empty();
        let placement = Placement { slot: Slot(slot), from, len, evicts };
        let target = &mut self.slots[placement.slot.0];
        target.busy = true;
        target.last_used = self.now;
        target.tokens.clear();
        target.tokens.extend_from_slice(&prompt[..len]);
        Some(placement)
    }

    /// Tokens were fed to a slot.
    pub(super) fn extend(&mut self, slot: Slot, tokens: &[TokenId]) {
        self.slots[slot.0].tokens.extend_from_slice(tokens); // a slot of a placement
    }

    /// A slot holds nothing any more.
    pub(super) fn clear(&mut self, slot: Slot) {
        self.slots[slot.0].tokens.clear(); // a slot of a placement
    }

    /// A slot is idle, and keeps what it holds.
    pub(super) fn give_back(&mut self, slot: Slot) {
        self.now += 1;
        let held = &mut self.slots[slot.0]; // a slot of a placement
        held.busy = false;
        held.last_used = self.now;
    }
}
