//! Products of queries with keys.

use super::AHEAD;
use crate::kernels::dense::Element;
use crate::kernels::simd::{Kernel, LANES, LINE, Simd};

/// `scores[i, t] = queries[i] · keys[t]`.
///
/// Keys lie in groups of [`LANES`] positions, number by number of a head: a vector has one number of each of a group's keys, and a sum
/// is taken from the first number of a head to its last, whatever rows and groups it is taken with.
pub(super) struct Scores<'a, E> {
    /// `[rows, head_dim]`.
    pub(super) queries: &'a [f32],
    /// `[n_groups, head_dim, LANES]`.
    pub(super) keys: &'a [E],
    pub(super) head_dim: usize,
    /// `[rows, n_groups · LANES]`.
    pub(super) scores: &'a mut [f32],
}

impl<E: Element> Kernel for Scores<'_, E> {
    type Out = ();

    /// About eight sums at a time: so many hide what each waits for, and fit in registers beside what they are made of.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.queries.len() / self.head_dim {
            1 => self.by_tiles::<S, 1, 8>(s),
            2 => self.by_tiles::<S, 2, 4>(s),
            3 => self.by_tiles::<S, 3, 3>(s),
            _ => self.by_tiles::<S, 4, 2>(s),
        }
    }
}

impl<E: Element> Scores<'_, E> {
    /// `N` rows and `W` groups at a time, as far as there are so many.
    #[inline(always)]
    fn by_tiles<S: Simd, const N: usize, const W: usize>(self, s: S) {
        let Self { queries, keys, head_dim, scores } = self;
        let (keys, _) = keys.as_chunks::<LANES>();
        let row_len = keys.len() / head_dim * LANES;
        let tiles = Tiles { s, head_dim, row_len };
        for (i, keys) in keys.chunks(W * head_dim).enumerate() {
            for (queries, scores) in queries.chunks(N * head_dim).zip(scores.chunks_mut(N * row_len)) {
                let scores = &mut scores[i * W * LANES..];
                if queries.len() == N * head_dim {
                    tiles.groups::<E, N, W>(queries, keys, scores);
                } else {
                    for (queries, scores) in queries.chunks_exact(head_dim).zip(scores.chunks_mut(row_len)) {
                        tiles.groups::<E, 1, W>(queries, keys, scores);
                    }
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Tiles<S> {
    s: S,
    head_dim: usize,
    /// From a row of scores to the next.
    row_len: usize,
}

impl<S: Simd> Tiles<S> {
    /// The first `N` rows with `W` groups of keys at once, or with fewer one by one.
    #[inline(always)]
    fn groups<E: Element, const N: usize, const W: usize>(
        self,
        queries: &[f32],
        keys: &[[E; LANES]],
        scores: &mut [f32],
    ) {
        if keys.len() == W * self.head_dim {
            return self.tile::<E, N, W>(queries, keys, scores);
        }
        for (g, keys) in keys.chunks_exact(self.head_dim).enumerate() {
            self.tile::<E, N, 1>(queries, keys, &mut scores[g * LANES..]);
        }
    }

    #[inline(always)]
    fn tile<E: Element, const N: usize, const W: usize>(
        self,
        queries: &[f32],
        keys: &[[E; LANES]],
        scores: &mut [f32],
    ) {
        let Self { s, head_dim, row_len } = self;
        // All of one length: known to the compiler, so that the loop checks nothing.
        let (mut q, mut k) = ([&queries[..head_dim]; N], [&keys[..head_dim]; W]);
        for i in 0..N {
            q[i] = &queries[i * head_dim..][..head_dim];
        }
        for w in 0..W {
            k[w] = &keys[w * head_dim..][..head_dim];
        }
        let step = W * size_of::<[E; LANES]>();
        let ahead = keys.as_ptr().cast::<u8>().wrapping_add(AHEAD);
        let mut sums = [[s.splat(0.0); W]; N];
        for j in 0..head_dim {
            for line in (0..step).step_by(LINE) {
                s.prefetch_near(ahead.wrapping_add(j * step + line));
            }
            let mut key = [s.splat(0.0); W];
            for w in 0..W {
                key[w] = E::load(s, &k[w][j]);
            }
            for i in 0..N {
                let q = s.splat(q[i][j]);
                for w in 0..W {
                    sums[i][w] = s.mul_add(q, key[w], sums[i][w]);
                }
            }
        }
        for i in 0..N {
            let (to, _) = scores[i * row_len..].as_chunks_mut::<LANES>();
            for w in 0..W {
                s.store(sums[i][w], &mut to[w]);
            }
        }
    }
}
