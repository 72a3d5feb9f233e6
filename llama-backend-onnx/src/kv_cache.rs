//! The keys and values of every slot, allocated once at load, and which row of it each slot has.
//!
//! The engine's attention takes the sequences of a batch as rows that follow each other in memory. So a slot is not a place:
//! it *has* a row, and slots that decode together are moved next to each other when they are not. That costs a copy of what
//! moves, once each time the set of sequences changes; then all of them decode in one run of the engine.
//!
//! What a row holds beyond its slot's length is left over, and is written before it is read: freeing costs nothing, and a
//! failed step leaves no trace.
//!
//! Shapes: a plane is the keys or the values of one layer, `[n_slots, n_kv_heads, max_seq_len, width]`, where `width` is
//! `head_dim` or, where the engine's kernel needs that, a little more.

use std::ops::Range;

use llama_backend::BackendError;

/// The sizes of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) n_layers: usize,
    pub(crate) n_slots: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) max_seq_len: usize,
    pub(crate) width: usize,
}

impl Shape {
    /// The numbers of one head of one row.
    fn head_len(&self) -> usize {
        self.max_seq_len * self.width
    }

    /// The numbers of one row.
    pub(crate) fn row_len(&self) -> usize {
        self.n_kv_heads * self.head_len()
    }

    /// The numbers of a position, in all layers: `None` where a machine could not count them.
    fn n_numbers(&self) -> Option<usize> {
        let sizes = [2, self.n_layers, self.n_slots, self.n_kv_heads, self.max_seq_len, self.width];
        sizes.iter().try_fold(1_usize, |n, &size| n.checked_mul(size))
    }
}

/// The KV cache of a model.
#[derive(Debug)]
pub(crate) struct KvCache {
    pub(crate) shape: Shape,
    /// Keys and values of each layer in turn.
    planes: Vec<Vec<f32>>,
    /// By slot.
    row_of: Vec<usize>,
    /// By row: the inverse.
    slot_in: Vec<usize>,
}

impl KvCache {
    /// An empty cache.
    pub(crate) fn new(shape: Shape) -> Result<Self, BackendError> {
        let too_large = || {
            let positions = shape.n_slots.saturating_mul(shape.max_seq_len);
            BackendError::params("n_slots * max_seq_len", positions, "as many as fit in memory")
        };
        shape.n_numbers().ok_or_else(too_large)?;
        let plane = |_| {
            let mut plane = Vec::new();
            let len = shape.n_slots * shape.row_len(); // less than all planes together, which was counted
            plane.try_reserve_exact(len).map_err(|_| too_large())?;
            plane.resize(len, 0.0);
            Ok::<_, BackendError>(plane)
        };
        let planes = (0..2 * shape.n_layers).map(plane).collect::<Result<_, _>>()?;
        let in_order: Vec<usize> = (0..shape.n_slots).collect();
        Ok(Self { shape, planes, row_of: in_order.clone(), slot_in: in_order })
    }

    /// The rows `rows` of each plane, keys and values of each layer in turn.
    pub(crate) fn rows(&mut self, rows: Range<usize>) -> impl Iterator<Item = &mut [f32]> {
        let len = self.shape.row_len();
        let numbers = rows.start * len..rows.end * len;
        self.planes.iter_mut().map(move |plane| &mut plane[numbers.clone()])
    }

    /// One head of a slot, `[max_seq_len, width]`, in the plane of this number.
    pub(crate) fn head(&self, plane: usize, slot: usize, head: usize) -> &[f32] {
        &self.planes[plane][self.head_range(slot, head)]
    }

    /// As [`head`](Self::head), to be written.
    pub(crate) fn head_mut(&mut self, plane: usize, slot: usize, head: usize) -> &mut [f32] {
        let range = self.head_range(slot, head);
        &mut self.planes[plane][range]
    }

    fn head_range(&self, slot: usize, head: usize) -> Range<usize> {
        let start = self.row_of[slot] * self.shape.row_len() + head * self.shape.head_len();
        start..start + self.shape.head_len()
    }

    /// The row that a slot has.
    pub(crate) fn row_of(&self, slot: usize) -> usize {
        self.row_of[slot]
    }

    /// The slot that has a row.
    #[cfg(test)]
    pub(crate) fn slot_in(&self, row: usize) -> usize {
        self.slot_in[row]
    }

    /// Gives each slot the row of its number, when nothing is held: equal calls then take equal rows.
    pub(crate) fn reset(&mut self) {
        for (i, (row, slot)) in self.row_of.iter_mut().zip(&mut self.slot_in).enumerate() {
            (*row, *slot) = (i, i);
        }
    }

    /// Gives these slots rows that follow each other, and says which. `lens`, by slot, is how many positions each holds.
    ///
    /// Of all places the one that moves the fewest positions is taken; slots that need not move do not.
    pub(crate) fn side_by_side(&mut self, slots: &[usize], lens: &[usize]) -> Range<usize> {
        let n = slots.len();
        let inside = |first: usize, row: usize| (first..first + n).contains(&row);
        let wanted: Vec<bool> = (0..self.shape.n_slots).map(|slot| slots.contains(&slot)).collect();
        let moved = |first: usize| -> usize {
            let come =
                slots.iter().filter(|&&slot| !inside(first, self.row_of[slot])).map(|&slot| lens[slot]);
            let go =
                self.slot_in[first..first + n].iter().filter(|&&slot| !wanted[slot]).map(|&slot| lens[slot]);
            come.chain(go).sum()
        };
        let first = (0..=self.shape.n_slots - n).min_by_key(|&first| moved(first)).unwrap_or(0);
        let mut free =
            (first..first + n).filter(|&row| !wanted[self.slot_in[row]]).collect::<Vec<_>>().into_iter();
        for &slot in slots {
            let from = self.row_of[slot];
            // As many slots are outside as there are rows inside that others have.
            if !inside(first, from)
                && let Some(to) = free.next()
            {
                self.exchange(from, to, lens);
            }
        }
        first..first + n
    }

    /// Exchanges the rows of two slots, as far as they hold anything.
    fn exchange(&mut self, a: usize, b: usize, lens: &[usize]) {
        let (slot_a, slot_b) = (self.slot_in[a], self.slot_in[b]);
        let [len_a, len_b] = [slot_a, slot_b].map(|slot| lens[slot] * self.shape.width);
        let both = len_a.min(len_b);
        self.each_head(a, b, |plane, a, b| {
            let (low, high) = (a.min(b), a.max(b));
            let (before, after) = plane.split_at_mut(high);
            before[low..low + both].swap_with_slice(&mut after[..both]);
            // The rest of the longer has nothing to be exchanged with.
            plane.copy_within(a + both..a + len_a, b + both);
            plane.copy_within(b + both..b + len_b.max(both), a + both);
        });
        self.slot_in.swap(a, b);
        (self.row_of[slot_a], self.row_of[slot_b]) = (b, a);
    }

    /// Copies the first `len` positions of one slot to another.
    pub(crate) fn copy(&mut self, from: usize, to: usize, len: usize) {
        if from == to {
            return;
        }
        let len = len * self.shape.width;
        self.each_head(self.row_of[from], self.row_of[to], |plane, from, to| {
            plane.copy_within(from..from + len, to);
        });
    }

    /// Calls for each plane and head with where the head begins in two rows.
    fn each_head(&mut self, a: usize, b: usize, mut call: impl FnMut(&mut [f32], usize, usize)) {
        let Shape { n_kv_heads, .. } = self.shape;
        let len = self.shape.head_len();
        for plane in &mut self.planes {
            for head in 0..n_kv_heads {
                let start = |row: usize| (row * n_kv_heads + head) * len;
                call(plane, start(a), start(b));
            }
        }
    }

    /// What a slot holds in its first `len` positions, plane by plane, head by head.
    #[cfg(test)]
    pub(crate) fn held(&self, slot: usize, len: usize) -> Vec<f32> {
        let start = self.row_of[slot] * self.shape.row_len();
        let row = |plane: &Vec<f32>| {
            let heads = plane[start..start + self.shape.row_len()].chunks_exact(self.shape.head_len());
            heads.flat_map(|head| head[..len * self.shape.width].to_vec()).collect::<Vec<_>>()
        };
        self.planes.iter().flat_map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use llama_backend::testing::Rng;

    use super::*;

    const SHAPE: Shape = Shape { n_layers: 2, n_slots: 8, n_kv_heads: 3, max_seq_len: 5, width: 2 };

    /// Whatever is moved, every slot holds what it held, and slots and rows stay each other's.
    #[test]
    fn moving_keeps_what_every_slot_holds() {
        let mut cache = KvCache::new(SHAPE).unwrap();
        let mut rng = Rng::new(5);
        for plane in &mut cache.planes {
            plane.iter_mut().for_each(|x| *x = rng.below(1 << 20) as f32);
        }
        for _ in 0..2000 {
            let lens: Vec<usize> = (0..8).map(|_| rng.below(6)).collect();
            let held =
                |cache: &KvCache| -> Vec<_> { (0..8).map(|slot| cache.held(slot, lens[slot])).collect() };
            let before = held(&cache);
            let mut slots: Vec<usize> = (0..8).filter(|_| rng.below(2) == 0).collect();
            if slots.is_empty() {
                slots.push(3);
            }
            let rows = cache.side_by_side(&slots, &lens);
            assert_eq!(rows.len(), slots.len());
            assert!(slots.iter().all(|&slot| rows.contains(&cache.row_of(slot))), "{slots:?} in {rows:?}");
            assert_eq!(held(&cache), before);
            assert!((0..8).all(|slot| cache.slot_in(cache.row_of(slot)) == slot));
        }
    }

    #[test]
    fn slots_that_are_side_by_side_already_do_not_move() {
        let mut cache = KvCache::new(SHAPE).unwrap();
        assert_eq!(cache.side_by_side(&[4, 2, 3], &[5; 8]), 2..5);
        assert_eq!(cache.row_of, [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn free_rows_are_taken_before_live_ones_move() {
        let mut cache = KvCache::new(SHAPE).unwrap();
        // Slots 1, 4 and 6 are free: two of the others move, and none of them twice.
        let rows = cache.side_by_side(&[0, 2, 3, 5, 7], &[5, 0, 5, 5, 0, 5, 0, 5]);
        let moved = [0, 2, 3, 5, 7].into_iter().filter(|&slot| cache.row_of(slot) != slot).count();
        assert_eq!((rows.len(), moved), (5, 2));
    }

    #[test]
    fn a_fork_copies_the_prefix_alone() {
        let mut cache = KvCache::new(SHAPE).unwrap();
        for plane in &mut cache.planes {
            plane.iter_mut().enumerate().for_each(|(i, x)| *x = i as f32);
        }
        let (from, kept) = (cache.held(1, 3), cache.held(6, 5));
        cache.copy(1, 6, 3);
        assert_eq!(cache.held(6, 3), from);
        // Beyond the prefix, what was there.
        let tail = |held: &[f32]| held.chunks(10).flat_map(|head| head[6..].to_vec()).collect::<Vec<_>>();
        assert_eq!(tail(&cache.held(6, 5)), tail(&kept));
    }
}
