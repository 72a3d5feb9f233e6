//! Causal attention over the KV cache, in place and grouped by KV head.
//!
//! A task is a block of one run's tokens with one KV head: the query heads that share it are the rows of one small matrix,
//! so that each row of the cache is read once for all of them, and nothing is repeated. Tasks share nothing, and go over the
//! threads as they come. Positions are added one by one, from the first to the token itself, in every row: a row's result is the same
//! to the bit in any block.
//!
//! Shapes: `q: [n_tokens, n_heads, head_dim]`; the cache of a layer: `[n_slots, n_kv_heads, max_seq_len, head_dim]`.

use std::sync::{Mutex, PoisonError};

use half::f16;
use llama_backend::Span;

use super::columns::Columns;
use super::dense::{Element, dots};
use super::elementwise::Softmax;
use super::rope::RopeTables;
use super::simd::{Kernel, LANES, Simd};
use super::{Context, SERIAL_BELOW};

/// Rows of queries at a time.
const BLOCK_ROWS: usize = 64;
/// Positions whose keys or values stay in the first cache while every row of a task uses them.
const BLOCK_POSITIONS: usize = 32;

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
        rows.saturating_mul(2 * self.head_dim as u128 + self.max_seq_len as u128)
    }

    /// The numbers of one slot's one head.
    fn head_len(&self) -> usize {
        self.max_seq_len * self.head_dim
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
    let Shape { n_kv_heads, head_dim, .. } = *shape;
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
    let place = |pos: usize| pos * head_dim..(pos + 1) * head_dim;
    let store_keys = |i: usize, keys: &mut [E]| {
        rows(i).for_each(|(from, pos)| rope.rotate(pos, &k[from], &mut keys[place(pos)], E::narrow));
    };
    let store_values = |i: usize, values: &mut [E]| {
        for (from, pos) in rows(i) {
            values[place(pos)].iter_mut().zip(&v[from]).for_each(|(to, v)| *to = E::narrow(*v));
        }
    };
    let len = shape.head_len();
    if k.len() < SERIAL_BELOW {
        keys.chunks_exact_mut(len).enumerate().for_each(|(i, keys)| store_keys(i, keys));
        values.chunks_exact_mut(len).enumerate().for_each(|(i, values)| store_values(i, values));
    } else {
        ctx.pool.chunks(keys, len, store_keys);
        ctx.pool.chunks(values, len, store_values);
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
    let Shape { n_kv_heads, n_rep, head_dim, .. } = *shape;
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
        let cached = (block.slot * n_kv_heads + head) * shape.head_len();
        let cached = cached..cached + (block.start_pos + block.n_tokens) * head_dim;
        let (keys, values) = (&keys[cached.clone()], &values[cached]);
        let len = block.n_tokens * group;
        let n_scores = len / head_dim * (block.start_pos + block.n_tokens);
        ctx.scratch.with(2 * len + n_scores, |scratch| {
            let (queries, scratch) = scratch.split_at_mut(len);
            let (mixed, scores) = scratch.split_at_mut(len);
            for (t, queries) in queries.chunks_exact_mut(group).enumerate() {
                let from = ((block.first_row + t) * n_kv_heads + head) * group;
                rope.rotate(block.start_pos + t, &q[from..from + group], queries, |x| x);
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

/// One task: `queries`, `out`: `[n_tokens · n_rep, head_dim]`; `keys`, `values`: `[len, head_dim]`; `scores: [rows, len]` is
/// scratch.
fn block_attention<E: Kept>(
    ctx: &Context,
    shape: &Shape,
    block: &Block,
    (queries, keys, values): (&[f32], &[E], &[E]),
    scores: &mut [f32],
    out: &mut [f32],
) {
    let head_dim = shape.head_dim;
    let len = keys.len() / head_dim;
    ctx.isa.run(Scores { queries, keys, head_dim, scores });
    let scale = 1.0 / (head_dim as f32).sqrt();
    for (i, row) in scores.chunks_exact_mut(len).enumerate() {
        let valid = block.start_pos + i / shape.n_rep + 1; // a token sees itself and what came before
        ctx.isa.run(Softmax { row, valid, scale });
    }
    ctx.isa.run(Mix { probs: scores, values, head_dim, start_pos: block.start_pos, n_rep: shape.n_rep, out });
}

/// `scores[i, t] = queries[i] · keys[t]`.
struct Scores<'a, E> {
    queries: &'a [f32],
    keys: &'a [E],
    head_dim: usize,
    scores: &'a mut [f32],
}

impl<E: Element> Kernel for Scores<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { queries, keys, head_dim, scores } = self;
        let len = keys.len() / head_dim;
        for (b, keys) in keys.chunks(BLOCK_POSITIONS * head_dim).enumerate() {
            let from = b * BLOCK_POSITIONS;
            let mut rows = scores.chunks_exact_mut(len);
            for queries in queries.chunks(3 * head_dim) {
                let mut next = || rows.next().map(|row| &mut row[from..]).unwrap_or_default();
                let q = |i: usize| &queries[i * head_dim..(i + 1) * head_dim];
                match queries.len() / head_dim {
                    3 => tile(s, keys, [q(0), q(1), q(2)], [next(), next(), next()]),
                    2 => tile(s, keys, [q(0), q(1)], [next(), next()]),
                    _ => tile(s, keys, [q(0)], [next()]),
                }
            }
        }
    }
}

/// A block of keys with `N` queries, four keys at a time.
#[inline(always)]
fn tile<S: Simd, E: Element, const N: usize>(
    s: S,
    keys: &[E],
    queries: [&[f32]; N],
    scores: [&mut [f32]; N],
) {
    let head_dim = queries[0].len();
    let n = keys.len() / head_dim;
    let key = |t: usize| &keys[t * head_dim..(t + 1) * head_dim];
    let mut t = 0;
    while t + 4 <= n {
        let products = dots(s, [key(t), key(t + 1), key(t + 2), key(t + 3)], queries, None);
        for i in 0..N {
            scores[i][t..t + 4].copy_from_slice(&products[i]);
        }
        t += 4;
    }
    while t < n {
        let products = dots(s, [key(t)], queries, None);
        for i in 0..N {
            scores[i][t] = products[i][0];
        }
        t += 1;
    }
}

/// `out[i] = Σ probs[i, t] · values[t]`, over the positions that row `i` sees and no others: what a later token left in the cache, be it
/// NaN, is nothing to it.
struct Mix<'a, E> {
    probs: &'a [f32],
    values: &'a [E],
    head_dim: usize,
    /// Of the first token, which the first `n_rep` rows are of.
    start_pos: usize,
    n_rep: usize,
    out: &'a mut [f32],
}

impl<E: Element> Kernel for Mix<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { probs, values, head_dim, start_pos, n_rep, out } = self;
        let len = values.len() / head_dim;
        out.fill(0.0);
        for (b, values) in values.chunks(BLOCK_POSITIONS * head_dim).enumerate() {
            let from = b * BLOCK_POSITIONS;
            let n = values.len() / head_dim;
            // The positions of this block that a row sees.
            let seen = |row: usize| (start_pos + row / n_rep + 1).saturating_sub(from).min(n);
            let probs = probs.chunks(2 * len);
            for (i, (probs, out)) in probs.zip(out.chunks_mut(2 * head_dim)).enumerate() {
                let p = |i: usize| &probs[i * len + from..][..n];
                let both = seen(2 * i);
                match out.len() / head_dim {
                    2 => {
                        let (first, second) = out.split_at_mut(head_dim);
                        let alone = both..seen(2 * i + 1); // the second row may be of a later token
                        let values_of =
                            |t: std::ops::Range<usize>| &values[t.start * head_dim..t.end * head_dim];
                        add_values(
                            s,
                            [&p(0)[..both], &p(1)[..both]],
                            values_of(0..both),
                            [first, &mut *second],
                        );
                        if !alone.is_empty() {
                            add_values(s, [&p(1)[alone.clone()]], values_of(alone), [second]);
                        }
                    }
                    _ => add_values(s, [&p(0)[..both]], &values[..both * head_dim], [out]),
                }
            }
        }
    }
}

/// `out[i] += Σ p[i][t] · values[t]` for `N` rows: position after position.
#[inline(always)]
fn add_values<S: Simd, E: Element, const N: usize>(
    s: S,
    p: [&[f32]; N],
    values: &[E],
    mut out: [&mut [f32]; N],
) {
    /// Vectors of a row that stay in registers meanwhile.
    const STRIP: usize = 4;
    let head_dim = out[0].len();
    let mut column = 0;
    while column + STRIP * LANES <= head_dim {
        add_strip::<S, E, N, STRIP>(s, p, values, out.each_mut().map(|out| &mut **out), column);
        column += STRIP * LANES;
    }
    while column + LANES <= head_dim {
        add_strip::<S, E, N, 1>(s, p, values, out.each_mut().map(|out| &mut **out), column);
        column += LANES;
    }
    for (out, p) in out.into_iter().zip(p) {
        for (p, values) in p.iter().zip(values.chunks_exact(head_dim)) {
            for (out, value) in out[column..].iter_mut().zip(&values[column..]) {
                *out += p * value.widen();
            }
        }
    }
}

/// The `W` vectors from a column on.
#[inline(always)]
fn add_strip<S: Simd, E: Element, const N: usize, const W: usize>(
    s: S,
    p: [&[f32]; N],
    values: &[E],
    out: [&mut [f32]; N],
    column: usize,
) {
    let head_dim = out[0].len();
    let n = values.len() / head_dim;
    let p = p.map(|p| &p[..n]);
    let out = out.map(|out| &mut out[column..].as_chunks_mut::<LANES>().0[..W]);
    let mut sums = [[s.splat(0.0); W]; N];
    for i in 0..N {
        for w in 0..W {
            sums[i][w] = s.load(&out[i][w]);
        }
    }
    for (t, row) in values.chunks_exact(head_dim).enumerate() {
        let row = &row[column..].as_chunks::<LANES>().0[..W];
        let mut value = [s.splat(0.0); W];
        for w in 0..W {
            value[w] = E::load(s, &row[w]);
        }
        for i in 0..N {
            let p = s.splat(p[i][t]);
            for w in 0..W {
                sums[i][w] = s.mul_add(p, value[w], sums[i][w]);
            }
        }
    }
    for (out, sums) in out.into_iter().zip(sums) {
        for (out, sum) in out.iter_mut().zip(sums) {
            s.store(sum, out);
        }
    }
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
        let zeros = vec![0.0f32; shape.n_kv_heads * shape.head_len()];
        let (mut keys, mut values, mut out) = (zeros.clone(), zeros, Vec::new());
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
