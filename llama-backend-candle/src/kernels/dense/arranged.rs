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
    let arrange_chunk = match group(n) {
        6 => arrange_chunk::<6>,
        5 => arrange_chunk::<5>,
        4 => arrange_chunk::<4>,
        3 => arrange_chunk::<3>,
        2 => arrange_chunk::<2>,
        _ => arrange_chunk::<1>,
    };
    const { assert!(GROUP == 6, "every group has its own") };
    let task = |c: usize, to: &mut [f32]| arrange_chunk(x, k, c * CHUNK..k.min((c + 1) * CHUNK), to);
    let len = arranged_len(n, CHUNK).max(1);
    if x.len() < SERIAL_BELOW {
        numbers.chunks_mut(len).enumerate().for_each(|(c, to)| task(c, to));
    } else {
        ctx.pool.chunks(numbers, len, task);
    }
    Arranged { numbers, n, k }
}

/// The same for the columns of a chunk, in groups of `G` rows.
fn arrange_chunk<const G: usize>(x: &[f32], k: usize, chunk: Range<usize>, to: &mut [f32]) {
    let groups: &mut [Group<G>] = to.as_chunks_mut().0.as_chunks_mut().0;
    for (x, group) in x.chunks(G * k).zip(groups) {
        let mut rows = [&[0.0; CHUNK][..chunk.len()]; G];
        for (row, x) in rows.iter_mut().zip(x.chunks_exact(k)) {
            *row = &x[chunk.clone()];
        }
        let (columns, behind) = group.split_at_mut(chunk.len());
        for (j, column) in columns.iter_mut().enumerate() {
            for i in 0..G {
                column[i] = rows[i][j];
            }
        }
        behind.fill([0.0; G]);
    }
}
