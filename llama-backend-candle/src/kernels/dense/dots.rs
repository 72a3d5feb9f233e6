//! Dot products of several rows with several.

use super::load;
use crate::kernels::simd::{LANES, LINE, Simd};

/// Memory to be asked for while products are summed: some with each vector, as evenly as it is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ahead {
    pub(super) from: *const u8,
    /// Bytes for each vector of a row: two lines at most.
    pub(super) step: usize,
}

/// The product of each of `R` weight rows with each of `N` rows of activations, all of one length; by rows of activations.
///
/// A sum is taken in the same order whatever `R` and `N` are.
#[inline(always)]
pub(super) fn dots<S: Simd, const R: usize, const N: usize>(
    s: S,
    weights: [&[f32]; R],
    x: [&[f32]; N],
    ahead: Option<Ahead>,
) -> [[f32; R]; N] {
    let sums = lanes(s, weights, x, ahead);
    let mut products = [[0.0; R]; N];
    for i in 0..N {
        let (fours, rest) = products[i].as_chunks_mut::<4>();
        let rest_from = R - rest.len();
        for (r, four) in fours.iter_mut().enumerate() {
            *four = s.sum_four([sums[4 * r][i], sums[4 * r + 1][i], sums[4 * r + 2][i], sums[4 * r + 3][i]]);
        }
        for (r, product) in rest.iter_mut().enumerate() {
            *product = s.sum(sums[rest_from + r][i]);
        }
    }
    products
}

/// The sums of products, lane by lane.
#[inline(always)]
fn lanes<S: Simd, const R: usize, const N: usize>(
    s: S,
    weights: [&[f32]; R],
    x: [&[f32]; N],
    ahead: Option<Ahead>,
) -> [[S::V; N]; R] {
    let len = x[0].len();
    let n_vectors = len / LANES;
    // All of one length: known to the compiler, so that the loop checks nothing.
    let mut w = [&weights[0].as_chunks::<LANES>().0[..n_vectors]; R];
    let mut y = [&x[0].as_chunks::<LANES>().0[..n_vectors]; N];
    for r in 0..R {
        w[r] = &weights[r].as_chunks::<LANES>().0[..n_vectors];
    }
    for i in 0..N {
        y[i] = &x[i].as_chunks::<LANES>().0[..n_vectors];
    }
    let mut sums = [[s.splat(0.0); N]; R];
    for j in 0..n_vectors {
        if let Some(Ahead { from, step }) = ahead {
            s.prefetch(from.wrapping_add(j * step));
            if step > LINE {
                s.prefetch(from.wrapping_add(j * step + LINE));
            }
        }
        let mut loaded = [s.splat(0.0); N];
        for i in 0..N {
            loaded[i] = s.load(&y[i][j]);
        }
        for r in 0..R {
            let w = s.load(&w[r][j]);
            for i in 0..N {
                sums[r][i] = s.mul_add(w, loaded[i], sums[r][i]);
            }
        }
    }
    if !len.is_multiple_of(LANES) {
        for r in 0..R {
            let w = load(s, &weights[r][n_vectors * LANES..]);
            for i in 0..N {
                sums[r][i] = s.mul_add(w, load(s, &x[i][n_vectors * LANES..]), sums[r][i]);
            }
        }
    }
    sums
}
