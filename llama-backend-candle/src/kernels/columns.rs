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

// SAFETY: a `Columns` is the only way to its numbers, as a mutable slice would be: `of` makes one of a slice that is borrowed
// mutably, and columns that `split_off_first` gives away are no longer its own: no two have the same.
#[allow(unsafe_code)]
unsafe impl Send for Columns<'_> {}

impl<'a> Columns<'a> {
    /// All columns of a matrix with rows of `n` numbers.
    pub(crate) fn of(matrix: &'a mut [f32], n: usize) -> Self {
        let rows = matrix.len().checked_div(n).unwrap_or(0);
        Self { first: matrix.as_mut_ptr(), stride: n, rows, width: n, matrix: PhantomData }
    }

    /// Takes the first `width` columns off, or all where there are fewer.
    pub(crate) fn split_off_first(&mut self, width: usize) -> Self {
        let width = width.min(self.width);
        let first = self.first;
        // Within the first row, or just behind it.
        self.first = first.wrapping_add(width);
        self.width -= width;
        Self { first, width, ..*self }
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

    /// Writes numbers to a row from a column on, `N` after `N`, as far as there are columns.
    #[inline]
    pub(crate) fn write<const N: usize>(
        &mut self,
        row: usize,
        from: usize,
        numbers: impl IntoIterator<Item = [f32; N]>,
    ) {
        /// Apart, so that the compiler makes no copy of any length of both, which is a call.
        #[cold]
        #[inline(never)]
        fn write_last(to: &mut [f32], numbers: &[f32]) {
            to.copy_from_slice(&numbers[..to.len()]);
        }
        for (to, numbers) in self.row(row, from, usize::MAX).chunks_mut(N).zip(numbers) {
            match to.first_chunk_mut() {
                Some(to) => *to = numbers,
                None => write_last(to, &numbers),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_the_whole() {
        for (rows, n, widths) in
            [(1, 1, &[1][..]), (3, 10, &[4, 1, 5]), (5, 16, &[16, 1]), (2, 7, &[3, 0, 100]), (0, 5, &[2, 3])]
        {
            let mut matrix = vec![0.0; rows * n];
            let mut columns = Columns::of(&mut matrix, n);
            let mut expected = vec![vec![]; rows];
            for (i, &width) in widths.iter().enumerate() {
                let mut part = columns.split_off_first(width);
                for (row, expected) in expected.iter_mut().enumerate() {
                    let number = (row * 100 + i) as f32;
                    part.row(row, 0, width).fill(number);
                    part.write(row, 0, [[number]]);
                    expected.resize(n.min(expected.len() + width), number);
                }
            }
            assert_eq!(matrix, expected.concat());
        }
    }
}
