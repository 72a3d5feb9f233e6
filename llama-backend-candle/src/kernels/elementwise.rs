//! RMSNorm, SwiGLU's product and softmax.

use super::simd::{Kernel, LANES, Simd};
use super::{Context, SERIAL_BELOW};

/// `x / rms(x) · weight`, row by row: `x`, `out`: `[n, dim]`, `weight`: `[dim]`.
pub(crate) fn rms_norm(ctx: &Context, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let dim = weight.len();
    let row = |i: usize, out: &mut [f32]| {
        let x = &x[i * dim..(i + 1) * dim];
        ctx.isa.run(RmsNorm { x, weight, eps, out });
    };
    if x.len() < SERIAL_BELOW {
        out.chunks_exact_mut(dim).enumerate().for_each(|(i, out)| row(i, out));
    } else {
        ctx.pool.chunks(out, dim, row);
    }
}

/// `x += y`, both of one length.
pub(crate) fn add(ctx: &Context, x: &mut [f32], y: &[f32]) {
    const CHUNK: usize = 1 << 14;
    let chunk = |i: usize, x: &mut [f32]| {
        // As fast as memory without any instructions of its own.
        x.iter_mut().zip(&y[i * CHUNK..]).for_each(|(x, y)| *x += y);
    };
    if x.len() < SERIAL_BELOW {
        x.chunks_mut(CHUNK).enumerate().for_each(|(i, x)| chunk(i, x));
    } else {
        ctx.pool.chunks(x, CHUNK, chunk);
    }
}

/// `silu(gate) · up`, written over `gate`: both of one length.
pub(crate) fn silu_mul(ctx: &Context, gate: &mut [f32], up: &[f32]) {
    const CHUNK: usize = 1 << 12;
    let chunk = |i: usize, gate: &mut [f32]| {
        ctx.isa.run(SiluMul { up: &up[i * CHUNK..][..gate.len()], gate });
    };
    if gate.len() < SERIAL_BELOW {
        gate.chunks_mut(CHUNK).enumerate().for_each(|(i, gate)| chunk(i, gate));
    } else {
        ctx.pool.chunks(gate, CHUNK, chunk);
    }
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, weight, eps, out } = self;
        let (chunks, rest) = x.as_chunks::<LANES>();
        let mut squares = s.splat(0.0);
        for chunk in chunks {
            let v = s.load(chunk);
            squares = s.mul_add(v, v, squares);
        }
        let sum = s.sum(squares) + rest.iter().map(|x| x * x).sum::<f32>();
        let scale = 1.0 / (sum / x.len() as f32 + eps).sqrt();
        for ((x, weight), out) in x.iter().zip(weight).zip(out) {
            *out = x * scale * weight;
        }
    }
}

struct SiluMul<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Kernel for SiluMul<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (gate, gate_rest) = self.gate.as_chunks_mut::<LANES>();
        let (up, up_rest) = self.up.as_chunks::<LANES>();
        for (gate, up) in gate.iter_mut().zip(up) {
            s.store(swiglu(s, s.load(gate), s.load(up)), gate);
        }
        for (gate, &up) in gate_rest.iter_mut().zip(up_rest) {
            *gate = s.to_array(swiglu(s, s.splat(*gate), s.splat(up)))[0];
        }
    }
}

/// `gate / (1 + e^-gate) · up`.
///
/// A function and not a closure: a closure that is not inlined is compiled for the plain processor, and twenty times slower.
#[inline(always)]
fn swiglu<S: Simd>(s: S, gate: S::V, up: S::V) -> S::V {
    let denominator = s.add(s.splat(1.0), s.exp(s.mul(gate, s.splat(-1.0))));
    s.mul(s.div(gate, denominator), up)
}

/// `softmax(scale · row[..valid])` in place; what lies behind is left as it is. `valid` is at least 1.
pub(crate) struct Softmax<'a> {
    pub(crate) row: &'a mut [f32],
    pub(crate) valid: usize,
    pub(crate) scale: f32,
}

impl Kernel for Softmax<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let row = &mut self.row[..self.valid];
        // The scale is positive, so that the largest score stays the largest.
        let (chunks, rest) = row.as_chunks_mut::<LANES>();
        let mut max = s.splat(f32::NEG_INFINITY);
        for chunk in &*chunks {
            max = s.max(max, s.load(chunk));
        }
        let lanes = s.to_array(max);
        let max = lanes.iter().chain(&*rest).copied().fold(f32::NEG_INFINITY, f32::max);
        let (scale, offset) = (s.splat(self.scale), s.splat(-max * self.scale));
        let mut sum = s.splat(0.0);
        for chunk in &mut *chunks {
            let e = s.exp(s.mul_add(s.load(chunk), scale, offset));
            sum = s.add(sum, e);
            s.store(e, chunk);
        }
        let mut total = s.sum(sum);
        for x in &mut *rest {
            *x = s.to_array(s.exp(s.mul_add(s.splat(*x), scale, offset)))[0];
            total += *x;
        }
        let inverse = 1.0 / total;
        row.iter_mut().for_each(|x| *x *= inverse);
    }
}
