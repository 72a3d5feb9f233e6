//! Causal attention over the KV cache, in place and grouped by KV head.
//!
//! A task is a block of one run's tokens with one KV head: the query heads that share it are the rows of one small matrix,
//! so that each row of the cache is read once for all of them, and nothing is repeated. Tasks share nothing, and go over the
//! threads as they come. Blocks of many rows multiply by `gemm`, few rows by the dot kernel.
//!
//! Shapes: `q: [n_tokens, n_heads, head_dim]`; the cache of a layer: `[n_slots, n_kv_heads, max_seq_len, head_dim]`.

use llama_backend::Span;
use rayon::prelude::*;

use super::elementwise::Softmax;
use super::matmul::{DotRows, Matrix, gemm};
use super::rope::RopeTables;
use super::simd::{Kernel, LANES, Simd};
use super::{Context, SERIAL_BELOW};

/// Rows of queries at a time.
const BLOCK_ROWS: usize = 64;
/// From here `gemm` is faster than the dot kernel.
const GEMM_ROWS: usize = 16;
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

    /// The scratch of one task, in numbers: its queries, and their scores over a full slot.
    pub(crate) fn task_scratch(&self) -> u128 {
        let rows = (self.block_tokens() * self.n_rep) as u128;
        rows.saturating_mul(self.head_dim as u128 + self.max_seq_len as u128)
    }

    /// The numbers of one slot's one head.
    fn head_len(&self) -> usize {
        self.max_seq_len * self.head_dim
    }
}

/// Writes a batch's keys, turned to their positions, and its values: `k`, `v`: `[n_tokens, n_kv_heads, head_dim]`.
pub(crate) fn store(
    shape: &Shape,
    rope: &RopeTables,
    spans: &[Span],
    (k, v): (&[f32], &[f32]),
    (keys, values): (&mut [f32], &mut [f32]),
) {
    let Shape { n_kv_heads, head_dim, .. } = *shape;
    let head = |(i, (keys, values)): (usize, (&mut [f32], &mut [f32]))| {
        let (slot, head) = (i / n_kv_heads, i % n_kv_heads);
        let Some(span) = spans.iter().find(|span| span.slot == slot) else {
            return;
        };
        for t in 0..span.n_tokens {
            let pos = span.start_pos + t;
            let from = ((span.first_row + t) * n_kv_heads + head) * head_dim;
            let (from, to) = (from..from + head_dim, pos * head_dim..(pos + 1) * head_dim);
            rope.rotate(pos, &k[from.clone()], &mut keys[to.clone()]);
            values[to].copy_from_slice(&v[from]);
        }
    };
    let len = shape.head_len();
    if k.len() < SERIAL_BELOW {
        keys.chunks_exact_mut(len).zip(values.chunks_exact_mut(len)).enumerate().for_each(head);
    } else {
        keys.par_chunks_exact_mut(len).zip(values.par_chunks_exact_mut(len)).enumerate().for_each(head);
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
pub(crate) fn attend(
    ctx: &Context,
    shape: &Shape,
    rope: &RopeTables,
    spans: &[Span],
    q: &[f32],
    (keys, values): (&[f32], &[f32]),
    out: &mut [f32],
) {
    let Shape { n_kv_heads, n_rep, head_dim, .. } = *shape;
    let group = n_rep * head_dim; // the numbers of a token in a task
    let blocks: Vec<Block> = spans.iter().flat_map(|span| blocks(span, shape)).collect();

    // Each task writes [n_tokens, group] of its own; blocks lie in the order of their rows, heads within.
    let attend = |staged: &mut [f32]| {
        let mut rest = staged;
        let mut tasks = Vec::with_capacity(blocks.len() * n_kv_heads);
        for block in &blocks {
            for head in 0..n_kv_heads {
                let (part, after) = rest.split_at_mut(block.n_tokens * group);
                rest = after;
                tasks.push((block, head, part));
            }
        }
        let work: usize = blocks.iter().map(|b| b.n_tokens * (b.start_pos + b.n_tokens)).sum();
        let task = |(block, head, part): (&Block, usize, &mut [f32])| {
            let cached = (block.slot * n_kv_heads + head) * shape.head_len();
            let cached = cached..cached + (block.start_pos + block.n_tokens) * head_dim;
            let (keys, values) = (&keys[cached.clone()], &values[cached]);
            let n_scores = part.len() / head_dim * (block.start_pos + block.n_tokens);
            ctx.scratch.with(part.len() + n_scores, |scratch| {
                let (queries, scores) = scratch.split_at_mut(part.len());
                for (t, queries) in queries.chunks_exact_mut(group).enumerate() {
                    let from = ((block.first_row + t) * n_kv_heads + head) * group;
                    rope.rotate(block.start_pos + t, &q[from..from + group], queries);
                }
                block_attention(ctx, shape, block, (queries, keys, values), scores, part);
            });
        };
        if work * n_kv_heads * group < SERIAL_BELOW {
            tasks.into_iter().for_each(task);
        } else {
            // The last blocks see the most positions: first, so that no thread is left with a long one at the end.
            tasks.reverse();
            tasks.into_par_iter().with_max_len(1).for_each(task);
        }
    };
    if blocks.iter().all(|block| block.n_tokens == 1) {
        attend(out); // a block of one token is that token's row already
        return;
    }
    ctx.scratch.with(out.len(), |staged| {
        attend(staged);
        // [block, head, token] to [block, token, head].
        let width = n_kv_heads * group;
        for block in &blocks {
            let rows = block.first_row * width..(block.first_row + block.n_tokens) * width;
            let (staged, out) = (&staged[rows.clone()], &mut out[rows]);
            for (head, staged) in staged.chunks_exact(block.n_tokens * group).enumerate() {
                for (staged, out) in staged.chunks_exact(group).zip(out.chunks_exact_mut(width)) {
                    out[head * group..(head + 1) * group].copy_from_slice(staged);
                }
            }
        }
    });
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
fn block_attention(
    ctx: &Context,
    shape: &Shape,
    block: &Block,
    (queries, keys, values): (&[f32], &[f32], &[f32]),
    scores: &mut [f32],
    out: &mut [f32],
) {
    let head_dim = shape.head_dim;
    let (rows, len) = (queries.len() / head_dim, keys.len() / head_dim);
    let by_gemm = rows >= GEMM_ROWS;
    if by_gemm {
        let (queries, keys) = (Matrix::new(queries, head_dim), Matrix::new(keys, head_dim).transposed());
        gemm(queries, keys, scores, len, 1);
    } else {
        ctx.isa.run(Scores { queries, keys, head_dim, scores });
    }
    let scale = 1.0 / (head_dim as f32).sqrt();
    for (i, row) in scores.chunks_exact_mut(len).enumerate() {
        let valid = block.start_pos + i / shape.n_rep + 1; // a token sees itself and what came before
        ctx.isa.run(Softmax { row, valid, scale });
    }
    if by_gemm {
        gemm(Matrix::new(scores, len), Matrix::new(values, head_dim), out, head_dim, 1);
    } else {
        ctx.isa.run(Mix { probs: scores, values, head_dim, out });
    }
}

/// `scores[i, t] = queries[i] · keys[t]`.
struct Scores<'a> {
    queries: &'a [f32],
    keys: &'a [f32],
    head_dim: usize,
    scores: &'a mut [f32],
}

impl Kernel for Scores<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let len = self.keys.len() / self.head_dim;
        for (b, keys) in self.keys.chunks(BLOCK_POSITIONS * self.head_dim).enumerate() {
            let rows = self.queries.chunks_exact(self.head_dim);
            for (x, scores) in rows.zip(self.scores.chunks_exact_mut(len)) {
                let from = b * BLOCK_POSITIONS;
                let out = &mut scores[from..from + keys.len() / self.head_dim];
                let k = self.head_dim;
                DotRows { x, weights: keys, k, out }.run(s);
            }
        }
    }
}

/// `out[i] = Σ probs[i, t] · values[t]`.
struct Mix<'a> {
    probs: &'a [f32],
    values: &'a [f32],
    head_dim: usize,
    out: &'a mut [f32],
}

impl Kernel for Mix<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { probs, values, head_dim, out } = self;
        let len = values.len() / head_dim;
        out.fill(0.0);
        for (b, values) in values.chunks(BLOCK_POSITIONS * head_dim).enumerate() {
            let at = b * BLOCK_POSITIONS;
            for (probs, out) in probs.chunks_exact(len).zip(out.chunks_exact_mut(head_dim)) {
                let probs = &probs[at..at + values.len() / head_dim];
                // Four positions at a time, so that `out` is loaded and stored a quarter as often.
                let (fours, rest) = probs.as_chunks::<4>();
                let (four_values, rest_values) = values.split_at(fours.len() * 4 * head_dim);
                for (p, values) in fours.iter().zip(four_values.chunks_exact(4 * head_dim)) {
                    add_rows(s, *p, values, out);
                }
                for (p, value) in rest.iter().zip(rest_values.chunks_exact(head_dim)) {
                    add_rows(s, [*p], value, out);
                }
            }
        }
    }
}

/// `out += Σ p[i] · rows[i]`: `rows: [N, out.len()]`.
#[inline(always)]
fn add_rows<S: Simd, const N: usize>(s: S, p: [f32; N], rows: &[f32], out: &mut [f32]) {
    let width = out.len();
    let rows: [_; N] = std::array::from_fn(|i| rows[i * width..(i + 1) * width].as_chunks::<LANES>());
    let (chunks, rest) = out.as_chunks_mut::<LANES>();
    let n_chunks = chunks.len();
    let full = rows.map(|(chunks, _)| &chunks[..n_chunks]);
    for (c, out) in chunks.iter_mut().enumerate() {
        let mut sum = s.load(out);
        for i in 0..N {
            sum = s.mul_add(s.splat(p[i]), s.load(&full[i][c]), sum);
        }
        s.store(sum, out);
    }
    for (c, out) in rest.iter_mut().enumerate() {
        *out += (0..N).map(|i| p[i] * rows[i].1[c]).sum::<f32>();
    }
}
