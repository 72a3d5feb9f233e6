//! Causal attention over the KV cache, in place and grouped by KV head.
//!
//! A task is a block of one run's tokens with one KV head: the query heads that share it are the rows of one small matrix,
//! so that each key and value is read once for all of them, and nothing is repeated. Tasks share nothing, and go over the
//! threads as they come. A score adds its head's numbers from the first to the last, and values are added from the first position to the
//! token itself, in every row: a row's result is the same to the bit in any block.
//!
//! Shapes: `q: [n_tokens, n_heads, head_dim]`; a layer's values: `[n_slots, n_kv_heads, max_seq_len, head_dim]`; its keys, in groups of
//! [`LANES`] positions: `[n_slots, n_kv_heads, ⌈max_seq_len / LANES⌉, head_dim, LANES]`, so that a vector is of as many positions.

mod mix;
mod scores;

use std::sync::{Mutex, PoisonError};

use half::f16;
use llama_backend::Span;

use super::columns::Columns;
use super::dense::Element;
use super::elementwise::Softmax;
use super::rope::RopeTables;
use super::simd::LANES;
use super::{Context, SERIAL_BELOW};
use mix::Mix;
use scores::Scores;

/// Rows of queries at a time.
const BLOCK_ROWS: usize = 64;
/// Bytes between what is read of the cache and what is asked for meanwhile.
const AHEAD: usize = 8192;

/// The sizes of a layer's attention.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) n_kv_heads: usize,
    /// Query heads per KV head.
    pub(crate) n_rep: usize,
    pub(crate) head_dim: usize,
    pub(crate) max_seq_len: usize,
}

impl Shape {
    /// Tokens in a block of queries.
    fn block_tokens(&self) -> usize {
        (BLOCK_ROWS / self.n_rep).max(1)
    }

    /// The scratch of one task, in numbers: its queries, their scores over a full slot, and what is mixed of the values.
    pub(crate) fn task_scratch(&self) -> u128 {
        let rows = (self.block_tokens() * self.n_rep) as u128;
        let row_len = (self.max_seq_len as u128).next_multiple_of(LANES as u128);
        rows.saturating_mul(2 * self.head_dim as u128 + row_len)
    }

    /// The numbers of a head's keys of so many positions, in whole groups.
    pub(crate) fn keys_len(&self, positions: usize) -> usize {
        positions.next_multiple_of(LANES) * self.head_dim
    }

    /// Positions beyond the last that a head has keys for.
    pub(crate) fn keys_padding(&self) -> usize {
        (LANES - self.max_seq_len % LANES) % LANES
    }

    /// The numbers of a head's values of so many positions.
    pub(crate) fn values_len(&self, positions: usize) -> usize {
        positions * self.head_dim
    }
}

/// An element of the KV cache.
pub(crate) trait Kept: Element + Send {
    fn narrow(x: f32) -> Self;
}

impl Kept for f32 {
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        x
    }
}

impl Kept for f16 {
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        Self::from_f32(x)
    }
}

/// Writes a batch's keys, turned to their positions, and its values: `k`, `v`: `[n_tokens, n_kv_heads, head_dim]`.
pub(crate) fn store<E: Kept>(
    ctx: &Context,
    shape: &Shape,
    rope: &RopeTables,
    spans: &[Span],
    (k, v): (&[f32], &[f32]),
    (keys, values): (&mut [E], &mut [E]),
) {
    let Shape { n_kv_heads, head_dim, max_seq_len, .. } = *shape;
    // What a head of a slot gets: pairs of places in the batch and in the cache.
    let rows = |i: usize| {
        let (slot, head) = (i / n_kv_heads, i % n_kv_heads);
        let span = spans.iter().find(move |span| span.slot == slot);
        span.into_iter().flat_map(move |span| {
            (0..span.n_tokens).map(move |t| {
                let (from, pos) = ((span.first_row + t) * n_kv_heads + head, span.start_pos + t);
                (from * head_dim..(from + 1) * head_dim, pos)
            })
        })
    };
    let store_keys = |i: usize, keys: &mut [E]| {
        let (keys, _) = keys.as_chunks_mut::<LANES>();
        for (from, pos) in rows(i) {
            let group = &mut keys[pos / LANES * head_dim..][..head_dim];
            let (pairs, _) = group.as_chunks_mut::<2>();
            for (to, pair) in pairs.iter_mut().zip(rope.rotated(pos, &k[from])) {
                for (to, number) in to.iter_mut().zip(pair) {
                    to[pos % LANES] = E::narrow(number);
                }
            }
        }
    };
    let store_values = |i: usize, values: &mut [E]| {
        for (from, pos) in rows(i) {
            let values = &mut values[shape.values_len(pos)..][..head_dim];
            values.iter_mut().zip(&v[from]).for_each(|(to, v)| *to = E::narrow(*v));
        }
    };
    let (keys_len, values_len) = (shape.keys_len(max_seq_len), shape.values_len(max_seq_len));
    if k.len() < SERIAL_BELOW {
        keys.chunks_exact_mut(keys_len).enumerate().for_each(|(i, keys)| store_keys(i, keys));
        values.chunks_exact_mut(values_len).enumerate().for_each(|(i, values)| store_values(i, values));
    } else {
        ctx.pool.chunks(keys, keys_len, store_keys);
        ctx.pool.chunks(values, values_len, store_values);
    }
}

/// A block of a run's tokens.
struct Block {
    slot: usize,
    first_row: usize,
    start_pos: usize,
    n_tokens: usize,
}

/// Softmax(q · keysᵀ / √head_dim) · values for every token of the batch, after [`store`]; `out` has `q`'s shape.
pub(crate) fn attend<E: Kept>(
    ctx: &Context,
    shape: &Shape,
    rope: &RopeTables,
    spans: &[Span],
    q: &[f32],
    (keys, values): (&[E], &[E]),
    out: &mut [f32],
) {
    let Shape { n_kv_heads, n_rep, head_dim, max_seq_len } = *shape;
    let group = n_rep * head_dim; // the numbers of a token in a task
    let blocks: Vec<Block> = spans.iter().flat_map(|span| blocks(span, shape)).collect();

    // Each task writes its tokens' columns of its head; blocks lie in the order of their rows.
    let width = n_kv_heads * group;
    let mut rest = out;
    let mut tasks = Vec::with_capacity(blocks.len() * n_kv_heads);
    for block in &blocks {
        let (rows, after) = rest.split_at_mut(block.n_tokens * width);
        rest = after;
        let mut columns = Columns::of(rows, width);
        tasks.extend((0..n_kv_heads).map(|head| (block, head, columns.split_off_first(group))));
    }
    let task = |block: &Block, head: usize, out: &mut Columns<'_>| {
        let n_positions = block.start_pos + block.n_tokens;
        let cached = block.slot * n_kv_heads + head;
        let keys = &keys[cached * shape.keys_len(max_seq_len)..][..shape.keys_len(n_positions)];
        let values = &values[cached * shape.values_len(max_seq_len)..][..shape.values_len(n_positions)];
        let len = block.n_tokens * group;
        let n_scores = block.n_tokens * n_rep * n_positions.next_multiple_of(LANES);
        ctx.scratch.with(2 * len + n_scores, |scratch| {
            let (queries, scratch) = scratch.split_at_mut(len);
            let (mixed, scores) = scratch.split_at_mut(len);
            for (t, queries) in queries.chunks_exact_mut(group).enumerate() {
                let from = ((block.first_row + t) * n_kv_heads + head) * group;
                let (pairs, _) = queries.as_chunks_mut::<2>();
                let rotated = rope.rotated(block.start_pos + t, &q[from..from + group]);
                pairs.iter_mut().zip(rotated).for_each(|(to, pair)| *to = pair);
            }
            block_attention(ctx, shape, block, (queries, keys, values), scores, mixed);
            for (t, mixed) in mixed.chunks_exact(group).enumerate() {
                out.row(t, 0, group).copy_from_slice(mixed);
            }
        });
    };
    let work: usize = blocks.iter().map(|b| b.n_tokens * (b.start_pos + b.n_tokens)).sum();
    if work.saturating_mul(width) < SERIAL_BELOW {
        tasks.into_iter().for_each(|(block, head, mut out)| task(block, head, &mut out));
    } else {
        // The last blocks see the most positions: first, so that no thread is left with a long one at the end.
        let tasks: Vec<_> = tasks.into_iter().rev().map(Mutex::new).collect();
        ctx.pool.run(tasks.len(), |i| {
            // Each is taken once.
            let mut part = tasks[i].lock().unwrap_or_else(PoisonError::into_inner);
            let (block, head, out) = &mut *part;
            task(block, *head, out);
        });
    }
}

fn blocks(span: &Span, shape: &Shape) -> impl Iterator<Item = Block> {
    let (span, step) = (*span, shape.block_tokens());
    (0..span.n_tokens).step_by(step).map(move |t| Block {
        slot: span.slot,
        first_row: span.first_row + t,
        start_pos: span.start_pos + t,
        n_tokens: step.min(span.n_tokens - t),
    })
}

/// One task: `queries`, `out`: `[n_tokens · n_rep, head_dim]`; `keys` and `values` of all positions that its tokens see;
/// `scores`, `[n_tokens · n_rep, positions of whole groups]`, is scratch.
fn block_attention<E: Kept>(
    ctx: &Context,
    shape: &Shape,
    block: &Block,
    (queries, keys, values): (&[f32], &[E], &[E]),
    scores: &mut [f32],
    out: &mut [f32],
) {
    let Shape { head_dim, n_rep, .. } = *shape;
    let row_len = keys.len() / head_dim;
    ctx.isa.run(Scores { queries, keys, head_dim, scores });
    let scale = 1.0 / (head_dim as f32).sqrt();
    for (i, row) in scores.chunks_exact_mut(row_len).enumerate() {
        let valid = block.start_pos + i / n_rep + 1; // a token sees itself and what came before
        ctx.isa.run(Softmax { row, valid, scale });
    }
    ctx.isa.run(Mix { probs: scores, row_len, values, head_dim, start_pos: block.start_pos, n_rep, out });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Isa;
    use crate::test_util::random;

    const LEN: usize = 70;

    /// One sequence, in chunks of so many tokens: what attention makes of it.
    fn in_chunks(isa: Isa, shape: &Shape, of: usize, [q, k, v]: [&[f32]; 3]) -> Vec<f32> {
        let ctx = Context::new(isa, 2).unwrap();
        let rope = RopeTables::new(shape.max_seq_len, shape.head_dim, 10000.0).unwrap();
        let kv_dim = shape.n_kv_heads * shape.head_dim;
        let q_dim = kv_dim * shape.n_rep;
        // What is left over is nothing to anybody.
        let left_over = |len: usize| vec![f32::NAN; shape.n_kv_heads * len];
        let (mut keys, mut values) =
            (left_over(shape.keys_len(shape.max_seq_len)), left_over(shape.values_len(shape.max_seq_len)));
        let mut out = Vec::new();
        for from in (0..LEN).step_by(of) {
            let to = LEN.min(from + of);
            let span = [Span { slot: 0, first_row: 0, start_pos: from, n_tokens: to - from }];
            let (k, v) = (&k[from * kv_dim..to * kv_dim], &v[from * kv_dim..to * kv_dim]);
            store(&ctx, shape, &rope, &span, (k, v), (&mut keys, &mut values));
            let q = &q[from * q_dim..to * q_dim];
            let mut part = vec![f32::NAN; q.len()];
            attend(&ctx, shape, &rope, &span, q, (&keys, &values), &mut part);
            out.extend(part);
        }
        out
    }

    /// What the formula says, in f64.
    fn naive(shape: &Shape, [q, k, v]: [&[f32]; 3]) -> Vec<f64> {
        let Shape { n_kv_heads, n_rep, head_dim, max_seq_len } = *shape;
        let rope = RopeTables::new(max_seq_len, head_dim, 10000.0).unwrap();
        let head = |x: &[f32], t: usize, n_heads: usize, head: usize| {
            x[(t * n_heads + head) * head_dim..][..head_dim].to_vec()
        };
        let turned =
            |pos: usize, x: Vec<f32>| rope.rotated(pos, &x).flatten().map(f64::from).collect::<Vec<_>>();
        let mut out = Vec::new();
        for (t, i) in (0..LEN).flat_map(|t| (0..n_kv_heads * n_rep).map(move |i| (t, i))) {
            let q = turned(t, head(q, t, n_kv_heads * n_rep, i));
            let weight = |pos: usize| {
                let k = turned(pos, head(k, pos, n_kv_heads, i / n_rep));
                let product: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum();
                (product / (head_dim as f64).sqrt()).exp()
            };
            let weights: Vec<f64> = (0..=t).map(weight).collect();
            let total: f64 = weights.iter().sum();
            let mut mixed = vec![0.0; head_dim];
            for (pos, weight) in weights.iter().enumerate() {
                let v = head(v, pos, n_kv_heads, i / n_rep);
                mixed.iter_mut().zip(v).for_each(|(to, v)| *to += weight / total * f64::from(v));
            }
            out.extend(mixed);
        }
        out
    }

    #[test]
    fn it_is_what_the_formula_says() {
        for isa in Isa::all() {
            for (n_kv_heads, n_rep, head_dim) in [
                (3, 1, 64),
                (2, 2, 128),
                (1, 3, 34),
                (2, 4, 72),
                (1, 5, 6),
                (1, 6, 24),
                (1, 15, 2),
                (1, 65, 8),
            ] {
                let shape = Shape { n_kv_heads, n_rep, head_dim, max_seq_len: LEN };
                let kv_dim = n_kv_heads * head_dim;
                let (q, k) = (random(LEN * kv_dim * n_rep, 1), random(LEN * kv_dim, 2));
                let v = random(LEN * kv_dim, 3);
                let expected = naive(&shape, [&q, &k, &v]);
                for of in [1, 9] {
                    let found = in_chunks(isa, &shape, of, [&q, &k, &v]);
                    let far = found.iter().zip(&expected).find(|(x, y)| (f64::from(**x) - **y).abs() > 1e-5);
                    assert!(
                        far.is_none() && found.len() == expected.len(),
                        "{isa:?} {shape:?} {of}: {far:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_token_is_the_same_to_the_bit_in_any_chunk_whatever_comes_after_it() {
        for isa in Isa::all() {
            for (n_kv_heads, n_rep, head_dim) in [(1, 1, 4), (2, 4, 64), (3, 1, 40), (1, 3, 34)] {
                let shape = Shape { n_kv_heads, n_rep, head_dim, max_seq_len: 80 };
                let kv_dim = n_kv_heads * head_dim;
                let (q, k) = (random(LEN * kv_dim * n_rep, 1), random(LEN * kv_dim, 2));
                let mut v = random(LEN * kv_dim, 3);
                let expected = in_chunks(isa, &shape, 1, [&q, &k, &v]);
                for of in [2, 7, 33, LEN] {
                    assert!(expected == in_chunks(isa, &shape, of, [&q, &k, &v]), "{isa:?} {shape:?} {of}");
                }
                // The last token's values are not finite: no other token knows.
                v[(LEN - 1) * kv_dim..].fill(f32::INFINITY);
                let found = in_chunks(isa, &shape, LEN, [&q, &k, &v]);
                let before = (LEN - 1) * kv_dim * n_rep;
                assert!(expected[..before] == found[..before], "{isa:?} {shape:?}: a token saw a later one");
                assert!(found[before..].iter().all(|x| !x.is_finite()));
            }
        }
    }

    #[test]
    fn what_is_not_a_number_is_not_hidden() {
        for isa in Isa::all() {
            let shape = Shape { n_kv_heads: 1, n_rep: 2, head_dim: 16, max_seq_len: 80 };
            let (q, mut k, v) = (random(LEN * 32, 1), random(LEN * 16, 2), random(LEN * 16, 3));
            k[5 * 16..6 * 16].fill(f32::NAN);
            let found = in_chunks(isa, &shape, LEN, [&q, &k, &v]);
            assert!(found[..5 * 32].iter().all(|x| x.is_finite()), "{isa:?}");
            assert!(found[5 * 32..].iter().all(|x| x.is_nan()), "{isa:?}");
        }
    }
}
