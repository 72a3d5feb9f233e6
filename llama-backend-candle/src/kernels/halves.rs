//! Products of weights in half precision, f16 or bf16, with f32 activations: `x · Wᵀ`.
//!
//! A matrix is packed once, at load, into panels of [`ROWS`] rows that lie side by side, column after column: `[k][ROWS]`, in its own type
//! and once in memory. A vector runs across rows, so that no lanes are ever added: each sum is one chain of fused multiply-adds, from the
//! first column to the last. That order knows neither the batch nor the part of it that is computed at a time.
//!
//! Few rows of activations widen a panel in registers, as memory brings it; for many, a chunk of a panel is widened first and stays
//! in the first cache while all rows use it.
//!
//! Shapes: `x: [n, k]`, weights `[n_out, k]`, `out: [n, n_out]`.

use std::io;
use std::ops::Range;

use half::{bf16, f16};
use llama_backend::DType;
use memmap2::MmapMut;

use super::columns::Columns;
use super::dense::{Arranged, CHUNK, Element, chunks};
use super::simd::{Isa, Kernel, LANES, LINE, Simd};
use super::{Pool, anonymous};

/// Weight rows of a panel.
pub(crate) const ROWS: usize = 2 * LANES;
/// Rows of activations of a tile: their sums and a few more fill the sixteen registers.
const TILE: usize = 6;
/// Rows of activations at a time, of which the second cache holds a chunk: a panel is widened once for so many.
const BLOCK: usize = 44 * TILE;
/// Panels at a time: a chunk of the rows is brought to the second cache once for so many.
const PANELS: usize = 4;
/// Memory is asked for so many bytes ahead.
const AHEAD: usize = 4096;

/// A column of a panel.
type Column<E> = [E; ROWS];
/// The sums of some rows of activations with a panel.
type Sums<S, const N: usize> = [[<S as Simd>::V; 2]; N];

/// A matrix in half precision, packed.
#[derive(Debug)]
pub(crate) struct Halves {
    dtype: DType,
    k: usize,
    data: MmapMut,
}

impl Halves {
    /// Whether matrices of this type are packed so.
    pub(crate) fn are(dtype: DType) -> bool {
        matches!(dtype, DType::F16 | DType::BF16)
    }

    /// Packs a matrix `[n_out, k]`: `bytes` are those of as many elements, which `Linear` checks.
    pub(crate) fn new(pool: &Pool, dtype: DType, [n_out, k]: [usize; 2], bytes: &[u8]) -> io::Result<Self> {
        let panel = k * ROWS * size_of::<f16>();
        let mut data = anonymous(n_out.div_ceil(ROWS).saturating_mul(panel))?;
        let rows = bytes.len() / (k * size_of::<f16>()).max(1);
        pool.chunks(&mut data, panel.max(1), |i, panel| {
            let first = i * ROWS * k * size_of::<f16>();
            let these = &bytes[first..][..ROWS.min(rows - i * ROWS) * k * size_of::<f16>()];
            pack(these.as_chunks().0, k, panel.as_chunks_mut().0.as_chunks_mut().0);
        });
        Ok(Self { dtype, k, data })
    }

    /// The bytes of a row.
    pub(crate) fn row_bytes(&self) -> usize {
        self.k * size_of::<f16>()
    }
}

/// Turns rows of two bytes an element, `[rows, k]`, to columns; rows behind the last stay zero.
fn pack(rows: &[[u8; 2]], k: usize, columns: &mut [Column<[u8; 2]>]) {
    /// Columns at a time: a line of each row.
    const WIDTH: usize = 32;
    for (j, columns) in columns.chunks_mut(WIDTH).enumerate() {
        for (r, row) in rows.chunks_exact(k).enumerate() {
            for (element, column) in row[j * WIDTH..].iter().zip(&mut *columns) {
                column[r] = *element;
            }
        }
    }
}

/// Writes columns of `out = x · weightsᵀ`: of some panels, on one thread.
pub(crate) fn multiply(
    isa: Isa,
    weights: &Halves,
    panels: Range<usize>,
    x: Arranged<'_>,
    out: &mut Columns<'_>,
) {
    let panel = weights.row_bytes() * ROWS;
    let bytes = &weights.data[panels.start * panel..panels.end * panel];
    // A page's beginning, and whole columns of numbers: neither cast can fail.
    match weights.dtype {
        DType::F16 => isa.run(Multiply { panels: bytemuck::cast_slice::<_, Column<f16>>(bytes), x, out }),
        _ => isa.run(Multiply { panels: bytemuck::cast_slice::<_, Column<bf16>>(bytes), x, out }),
    }
}

struct Multiply<'a, 'b, E> {
    /// Panel after panel.
    panels: &'a [Column<E>],
    x: Arranged<'a>,
    out: &'a mut Columns<'b>,
}

impl<E: Element> Kernel for Multiply<'_, '_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { panels, x, out } = self;
        for block in (0..x.n()).step_by(BLOCK) {
            let n = BLOCK.min(x.n() - block);
            let first_rows = |n: usize| block..block + n;
            match n {
                // One row waits for memory, and for its sums: those of two panels hide the latency of each other's.
                1 => few::<S, E, 1, 2>(s, panels, x, first_rows(1), out),
                2 => few::<S, E, 2, 1>(s, panels, x, first_rows(2), out),
                3 => few::<S, E, 3, 1>(s, panels, x, first_rows(3), out),
                4 => few::<S, E, 4, 1>(s, panels, x, first_rows(4), out),
                5 => few::<S, E, 5, 1>(s, panels, x, first_rows(5), out),
                TILE => few::<S, E, TILE, 1>(s, panels, x, first_rows(TILE), out),
                _ => many(s, panels, x, first_rows(n), out),
            }
        }
    }
}

/// `N` rows of activations, which `rows` are, and `P` panels at a time.
#[inline(always)]
fn few<S: Simd, E: Element, const N: usize, const P: usize>(
    s: S,
    panels: &[Column<E>],
    x: Arranged<'_>,
    rows: Range<usize>,
    out: &mut Columns<'_>,
) {
    for (i, panels) in panels.chunks(P * x.k()).enumerate() {
        let mut sums = [[[s.splat(0.0); 2]; N]; P];
        let mut panel = [&panels[..x.k()]; P];
        for (p, panel) in panel.iter_mut().enumerate() {
            // Behind the last it is that again, whose sums nobody writes.
            *panel = panels.get(p * x.k()..(p + 1) * x.k()).unwrap_or(panel);
        }
        for chunk in chunks(x.k()) {
            let numbers = x.rows(rows.start, N, chunk.start).as_flattened();
            let each: [&[f32]; N] = each_row(numbers, chunk.len());
            let mut columns = [&panel[0][chunk.clone()]; P];
            for p in 0..P {
                columns[p] = &panel[p][chunk.clone()];
            }
            for j in 0..chunk.len() {
                let mut x = [0.0; N];
                for i in 0..N {
                    x[i] = each[i][j];
                }
                for p in 0..P {
                    let column = &columns[p][j];
                    if (j * size_of::<Column<E>>()).is_multiple_of(LINE) {
                        s.prefetch(std::ptr::from_ref(column).cast::<u8>().wrapping_add(AHEAD));
                    }
                    add_column(s, column, x, &mut sums[p]);
                }
            }
        }
        for (p, sums) in sums.into_iter().enumerate() {
            for (row, sums) in sums.into_iter().enumerate() {
                out.write(rows.start + row, (i * P + p) * ROWS, &stored(s, sums));
            }
        }
    }
}

/// Any number of rows, up to [`BLOCK`].
///
/// Sums lie together until they are whole: rows of the result are a power of two apart in most models, and would share a few lines of the
/// caches.
#[inline(always)]
fn many<S: Simd, E: Element>(
    s: S,
    panels: &[Column<E>],
    x: Arranged<'_>,
    rows: Range<usize>,
    out: &mut Columns<'_>,
) {
    let mut wide = Wide([[0.0; ROWS]; CHUNK]);
    let mut sums = [[[0.0; ROWS]; BLOCK]; PANELS];
    let n = rows.len();
    for (g, group) in panels.chunks(PANELS * x.k()).enumerate() {
        for sums in &mut sums {
            sums[..n].fill([0.0; ROWS]);
        }
        for chunk in chunks(x.k()) {
            let numbers = x.rows(rows.start, n, chunk.start).as_flattened();
            for (panel, sums) in group.chunks_exact(x.k()).zip(&mut sums) {
                let wide = &mut wide.0[..chunk.len()];
                for (from, to) in panel[chunk.clone()].iter().zip(&mut *wide) {
                    for (from, to) in from.as_chunks().0.iter().zip(to.as_chunks_mut().0) {
                        s.store(E::load(s, from), to);
                    }
                }
                // The next panel's memory, some of it with each tile.
                let next = panel[chunk.start..].as_ptr().wrapping_add(x.k()).cast::<u8>();
                let lines = size_of::<Column<E>>() * chunk.len() / LINE;
                let tiles = n.div_ceil(TILE);
                let each = numbers.chunks(TILE * (numbers.len() / n)).zip(sums[..n].chunks_mut(TILE));
                for (t, (numbers, sums)) in each.enumerate() {
                    for line in lines * t / tiles..lines * (t + 1) / tiles {
                        s.prefetch(next.wrapping_add(line * LINE));
                    }
                    match sums.len() {
                        1 => tile::<S, 1>(s, wide, numbers, sums),
                        2 => tile::<S, 2>(s, wide, numbers, sums),
                        3 => tile::<S, 3>(s, wide, numbers, sums),
                        4 => tile::<S, 4>(s, wide, numbers, sums),
                        5 => tile::<S, 5>(s, wide, numbers, sums),
                        _ => tile::<S, TILE>(s, wide, numbers, sums),
                    }
                }
            }
        }
        for p in 0..group.len() / x.k() {
            for (row, sums) in rows.clone().zip(&sums[p]) {
                out.write(row, (g * PANELS + p) * ROWS, sums);
            }
        }
    }
}

/// A chunk of a panel: lines of the cache.
#[repr(align(64))]
struct Wide([Column<f32>; CHUNK]);

/// Adds the products of `N` rows and a chunk of a panel.
#[inline(always)]
fn tile<S: Simd, const N: usize>(s: S, panel: &[Column<f32>], numbers: &[f32], to: &mut [[f32; ROWS]]) {
    let rows: [&[f32]; N] = each_row(numbers, panel.len());
    let mut sums = [[s.splat(0.0); 2]; N];
    for i in 0..N {
        let (halves, _) = to[i].as_chunks();
        sums[i] = [s.load(&halves[0]), s.load(&halves[1])];
    }
    /// Columns between two looks at where the loop ends.
    const STEP: usize = 8;
    let (steps, rest) = panel.as_chunks::<STEP>();
    // All of one length: known to the compiler, so that the loop checks nothing.
    let mut numbers = [&rows[0].as_chunks::<STEP>().0[..steps.len()]; N];
    for i in 0..N {
        numbers[i] = &rows[i].as_chunks().0[..steps.len()];
    }
    for (j, columns) in steps.iter().enumerate() {
        for c in 0..STEP {
            let mut x = [0.0; N];
            for i in 0..N {
                x[i] = numbers[i][j][c];
            }
            add_column(s, &columns[c], x, &mut sums);
        }
    }
    for (c, column) in rest.iter().enumerate() {
        add_column(s, column, rows.map(|row| row[steps.len() * STEP + c]), &mut sums);
    }
    for i in 0..N {
        to[i] = stored(s, sums[i]);
    }
}

#[inline(always)]
fn stored<S: Simd>(s: S, sums: [S::V; 2]) -> [f32; ROWS] {
    let mut numbers = [0.0; ROWS];
    for (sum, to) in sums.into_iter().zip(numbers.as_chunks_mut().0) {
        s.store(sum, to);
    }
    numbers
}

/// The first `len` numbers of each of `N` rows.
#[inline(always)]
fn each_row<const N: usize>(numbers: &[f32], len: usize) -> [&[f32]; N] {
    let row_len = numbers.len() / N;
    let mut rows = [&numbers[..len]; N];
    for i in 0..N {
        rows[i] = &numbers[i * row_len..][..len];
    }
    rows
}

/// Adds the products of one column with a number of each row.
#[inline(always)]
fn add_column<S: Simd, E: Element, const N: usize>(
    s: S,
    column: &Column<E>,
    x: [f32; N],
    sums: &mut Sums<S, N>,
) {
    let (halves, _) = column.as_chunks();
    let (a, b) = (E::load(s, &halves[0]), E::load(s, &halves[1]));
    for i in 0..N {
        let x = s.splat(x[i]);
        sums[i][0] = s.mul_add(a, x, sums[i][0]);
        sums[i][1] = s.mul_add(b, x, sums[i][1]);
    }
}
