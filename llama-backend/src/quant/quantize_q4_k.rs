//! From f32 to `q4_K`: the one type whose scales are searched for.
//!
//! The search is twenty-one times the work of rounding, and its sums must be added in ggml's order to give ggml's bits. So the eight parts of
//! a block are fitted side by side: each sum keeps its order, and the compiler has eight of them to put into vectors.

use half::f16;

use super::k_quants::{LEN, packed};
use super::quantize::{largest, scale};

/// The elements of a part.
const PART: usize = 32;
/// The parts of a block.
const PARTS: usize = LEN / PART;

/// A number for each part.
type Parts = [f32; PARTS];

/// The scale and minimum of each part, such that `scale · q - minimum` is near `x`, and the `q` that goes with them: whole numbers
/// from 0 to 15.
struct Fit {
    scale: Parts,
    minimum: Parts,
    q: [Parts; PART],
}

/// Each part gets the scale and minimum that fit best; then those are rounded to 6 bits relative to the largest ones, and the
/// elements once more to what became of them.
pub(super) fn q4_k(x: &[f32; LEN], block: &mut [u8; 144]) -> Option<()> {
    largest(x)?;
    let x: [Parts; PART] = std::array::from_fn(|j| std::array::from_fn(|part| x[part * PART + j]));
    let mut fit = fit(&x);
    let max = |parts: &Parts| parts.iter().fold(0.0, |max: f32, &x| if x > max { x } else { max });
    let (max_scale, max_minimum) = (max(&fit.scale), max(&fit.minimum));
    let inverse = |max: f32| if max > 0.0 { 63.0 / max } else { 0.0 };
    let (inverse_scale, inverse_minimum) = (inverse(max_scale), inverse(max_minimum));
    let (d, m) = (scale(max_scale / 63.0)?, scale(max_minimum / 63.0)?);
    block[..2].copy_from_slice(&d);
    block[2..4].copy_from_slice(&m);

    let (scales, q) = block[4..].split_at_mut(12);
    scales.fill(0);
    for part in 0..PARTS {
        let scale = (nearest(inverse_scale * fit.scale[part]) as u8).min(63);
        let minimum = (nearest(inverse_minimum * fit.minimum[part]) as u8).min(63);
        match part {
            0..4 => (scales[part], scales[part + 4]) = (scale, minimum),
            _ => {
                scales[part + 4] = scale & 0xf | (minimum & 0xf) << 4;
                scales[part - 4] |= scale >> 4 << 6;
                scales[part] |= minimum >> 4 << 6;
            }
        }
    }
    let (d, m) = (f16::from_le_bytes(d).to_f32(), f16::from_le_bytes(m).to_f32());
    for part in 0..PARTS {
        let (scale, minimum) = packed(scales, part);
        let (scale, minimum) = (d * f32::from(scale), m * f32::from(minimum));
        // Without a scale, what the fit left is as good as anything.
        if scale != 0.0 {
            for (q, x) in fit.q.iter_mut().zip(&x) {
                q[part] = nearest((x[part] + minimum) / scale).clamp(0.0, 15.0);
            }
        }
    }
    for (pair, out) in q.as_chunks_mut::<PART>().0.iter_mut().enumerate() {
        for (out, q) in out.iter_mut().zip(&fit.q) {
            *out = q[2 * pair] as u8 | (q[2 * pair + 1] as u8) << 4;
        }
    }
    Some(())
}

/// Rounds to the nearest whole number, ties to even; what lies outside -1..=64 may become any number outside 0..=63.
fn nearest(x: f32) -> f32 {
    // Between 2^23 and 2^24 there are only whole numbers, so that adding one rounds. A processor without an instruction for it
    // would call a function for each element.
    const WHOLE: f32 = (3 << 22) as f32;
    x.clamp(-1.0, 64.0) + WHOLE - WHOLE
}

/// Sums over the elements of each part, in their order. The term is that of element `j` of a part.
fn sum(term: impl Fn(usize, usize) -> f32) -> Parts {
    let mut sum = [0.0; PARTS];
    for j in 0..PART {
        for (part, sum) in sum.iter_mut().enumerate() {
            *sum += term(j, part);
        }
    }
    sum
}

/// The elements on a grid that begins at `low`, `inverse` steps to 1.
fn round(x: &[Parts; PART], inverse: &Parts, low: &Parts) -> [Parts; PART] {
    let on_grid = |x: &Parts, part: usize| nearest(inverse[part] * (x[part] - low[part])).clamp(0.0, 15.0);
    x.each_ref().map(|x| std::array::from_fn(|part| on_grid(x, part)))
}

/// Searches for the scale and minimum with the least squared error, weighted by magnitude (`make_qkx2_quants`): 21 grids a
/// little finer or coarser than the one that spans the elements, each with the least squares solution for its rounding.
fn fit(x: &[Parts; PART]) -> Fit {
    const LARGEST: f32 = 15.0;
    let magnitude = sum(|j, part| x[j][part] * x[j][part]).map(|sum| (sum / PART as f32).sqrt());
    let w = x.map(|x| -> Parts { std::array::from_fn(|part| magnitude[part] + x[part].abs()) });
    let sum_w = sum(|j, part| w[j][part]);
    let sum_x = sum(|j, part| w[j][part] * x[j][part]);
    let low: Parts = std::array::from_fn(|part| x.iter().fold(0.0, |low: f32, x| low.min(x[part])));
    let high: Parts = std::array::from_fn(|part| x.iter().fold(x[0][part], |high: f32, x| high.max(x[part])));
    let error = |q: &[Parts; PART], scale: &Parts, low: &Parts| {
        sum(|j, part| {
            let difference = scale[part] * q[j][part] + low[part] - x[j][part];
            w[j][part] * (difference * difference)
        })
    };

    let inverse: Parts = std::array::from_fn(|part| LARGEST / (high[part] - low[part]));
    let scale = inverse.map(|inverse| 1.0 / inverse);
    let mut best = Fit { scale, minimum: low.map(|low| -low), q: round(x, &inverse, &low) };
    let mut least = error(&best.q, &scale, &low);
    for step in 0..=20 {
        // Each grid begins at the lowest value that was best so far.
        let low = best.minimum.map(|minimum| -minimum);
        let steps = -1.0 + 0.1 * step as f32 + LARGEST;
        let q = round(x, &std::array::from_fn(|part| steps / (high[part] - low[part])), &low);
        let sum_q = sum(|j, part| w[j][part] * q[j][part]);
        let sum_q2 = sum(|j, part| w[j][part] * q[j][part] * q[j][part]);
        let sum_xq = sum(|j, part| w[j][part] * q[j][part] * x[j][part]);

        let determinant = |part: usize| sum_w[part] * sum_q2[part] - sum_q[part] * sum_q[part];
        let solved: [(f32, f32); PARTS] = std::array::from_fn(|part| {
            let scale = (sum_w[part] * sum_xq[part] - sum_x[part] * sum_q[part]) / determinant(part);
            let low = (sum_q2[part] * sum_x[part] - sum_q[part] * sum_xq[part]) / determinant(part);
            if low > 0.0 { (sum_xq[part] / sum_q2[part], 0.0) } else { (scale, low) }
        });
        let (scale, low) = (solved.map(|(scale, _)| scale), solved.map(|(_, low)| low));
        let error = error(&q, &scale, &low);
        for part in 0..PARTS {
            if determinant(part) > 0.0 && error[part] < least[part] {
                least[part] = error[part];
                (best.scale[part], best.minimum[part]) = (scale[part], -low[part]);
                for (best, q) in best.q.iter_mut().zip(&q) {
                    best[part] = q[part];
                }
            }
        }
    }
    for part in 0..PARTS {
        // All elements are the same, or 0: there is no grid.
        if high[part] == low[part] {
            (best.scale[part], best.minimum[part]) = (0.0, -low[part]);
            best.q.iter_mut().for_each(|q| q[part] = 0.0);
        }
    }
    best
}
