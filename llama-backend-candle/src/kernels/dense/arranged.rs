//! Activations as tiles of products take them.

use std::ops::Range;

use super::{CHUNK, Context, SERIAL_BELOW};

/// Rows of a group at most: the sums of as many with two vectors of weights, and a few more, fill the sixteen registers of AVX2.
pub(crate) const GROUP: usize = 6;

/// A [`CHUNK`] of the columns of `G` rows.
pub(crate) type Group<const G: usize> = [[f32; G]; CHUNK];

/// Activations chunk after chunk, of each group after group of rows, of each column after column: `[chunk][group][CHUNK][rows of a group]`,
/// so that a tile reads from one end to the other. The last chunk and the last group are filled up with zeros.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arranged<'a> {
    numbers: &'a [f32],
    n: usize,
    k: usize,
}

impl<'a> Arranged<'a> {
    /// The rows.
    pub(crate) fn n(&self) -> usize {
        self.n
    }

    /// The numbers of a row.
    pub(crate) fn k(&self) -> usize {
        self.k
    }

    pub(crate) fn n_groups(&self) -> usize {
        self.n.div_ceil(GROUP)
    }

    /// The rows of a group: as few as make so many groups.
    pub(crate) fn group(&self) -> usize {
        group(self.n)
    }

    /// The chunk from column `chunk` on of some groups, which have `G` rows.
    pub(crate) fn groups<const G: usize>(&self, groups: Range<usize>, chunk: usize) -> &'a [Group<G>] {
        assert_eq!(G, self.group(), "the rows of a group");
        let start = G * (chunk * self.n_groups() + groups.start * CHUNK);
        self.numbers[start..start + G * CHUNK * groups.len()].as_chunks().0.as_chunks().0
    }
}

/// The rows of each group of `n` rows.
fn group(n: usize) -> usize {
    n.div_ceil(n.div_ceil(GROUP).max(1))
}

/// The numbers of [`Arranged`] activations, of which there are `n` rows.
pub(crate) fn arranged_len(n: usize, k: usize) -> usize {
    n.div_ceil(GROUP) * group(n) * k.next_multiple_of(CHUNK)
}

/// Copies activations `[n, k]` into `numbers`, which are [`arranged_len`] ones.
pub(crate) fn arrange<'a>(ctx: &Context, x: &[f32], k: usize, numbers: &'a mut [f32]) -> Arranged<'a> {
    let n = x.len() / k;
    let group = group(n).max(1);
    let task = |c: usize, to: &mut [f32]| {
        let chunk = c * CHUNK..k.min((c + 1) * CHUNK);
        for (x, to) in x.chunks(group * k).zip(to.chunks_exact_mut(group * CHUNK)) {
            if x.len() < group * k || chunk.len() < CHUNK {
                to.fill(0.0);
            }
            for (i, x) in x.chunks_exact(k).enumerate() {
                for (x, to) in x[chunk.clone()].iter().zip(to.chunks_exact_mut(group)) {
                    to[i] = *x;
                }
            }
        }
    };
    let len = arranged_len(n, CHUNK).max(1);
    if x.len() < SERIAL_BELOW {
        numbers.chunks_mut(len).enumerate().for_each(|(c, to)| task(c, to));
    } else {
        ctx.pool.chunks(numbers, len, task);
    }
    Arranged { numbers, n, k }
}
