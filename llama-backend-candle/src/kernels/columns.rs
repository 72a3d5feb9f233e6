//! A part of the columns of a matrix that several threads write, each its own.

use std::marker::PhantomData;

/// Some columns of a row-major matrix, to be written by whoever has them.
#[derive(Debug)]
pub(crate) struct Columns<'a> {
    /// The first row's first of them.
    first: *mut f32,
    /// From a row to the next.
    stride: usize,
    rows: usize,
    width: usize,
    matrix: PhantomData<&'a mut [f32]>,
}

// SAFETY: a `Columns` is the only way to its numbers, as a mutable slice would be: `split` makes them of a slice that is borrowed
// mutably, and no two of the same column.
#[allow(unsafe_code)]
unsafe impl Send for Columns<'_> {}

impl<'a> Columns<'a> {
    /// Cuts a matrix with rows of `n` numbers into parts of `width` columns; the last may have fewer.
    pub(crate) fn split(matrix: &'a mut [f32], n: usize, width: usize) -> impl Iterator<Item = Self> {
        let rows = matrix.len().checked_div(n).unwrap_or(0);
        let matrix = &mut matrix[..rows * n];
        let first = matrix.as_mut_ptr();
        let starts = (0..n).step_by(width.max(1));
        starts.map(move |from| Self {
            first: first.wrapping_add(from), // within the first row
            stride: n,
            rows,
            width: width.min(n - from),
            matrix: PhantomData,
        })
    }

    /// `len` columns of a row from `from` on, as far as there are such.
    pub(crate) fn row(&mut self, row: usize, from: usize, len: usize) -> &mut [f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let from = from.min(self.width);
        let len = len.min(self.width - from);
        // SAFETY: row `row < rows` begins `row * stride` behind the first, and its columns `from..from + len` lie within the `width`
        // that are this value's: within the matrix, which is borrowed for `'a`, and within no other `Columns`.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts_mut(self.first.add(row * self.stride + from), len)
        }
    }

    /// Writes numbers to a row from a column on, as far as there are columns.
    #[inline]
    pub(crate) fn write<const N: usize>(&mut self, row: usize, from: usize, numbers: &[f32; N]) {
        let to = self.row(row, from, N);
        match to.first_chunk_mut() {
            Some(to) => *to = *numbers, // a few instructions, where a copy of any length is a call
            None => to.copy_from_slice(&numbers[..to.len()]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_the_whole() {
        for (rows, n, width) in [(1, 1, 1), (3, 10, 4), (5, 16, 16), (2, 7, 100), (0, 5, 2)] {
            let mut matrix = vec![0.0; rows * n];
            for (i, mut part) in Columns::split(&mut matrix, n, width).enumerate() {
                for row in 0..rows {
                    part.row(row, 0, width).fill((row * 100 + i) as f32);
                    part.write(row, 0, &[(row * 100 + i) as f32]);
                }
            }
            let expected = |i: usize| (i / n * 100 + i % n / width) as f32;
            assert_eq!(matrix, (0..rows * n).map(expected).collect::<Vec<_>>());
        }
    }
}
