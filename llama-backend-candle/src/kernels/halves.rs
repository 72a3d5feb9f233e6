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
use std::marker::PhantomData;
use std::ops::Range;

use half::{bf16, f16};
use llama_backend::DType;

use super::Context;
use super::columns::Columns;
use super::dense::{Arranged, CHUNK, chunks};
use super::memory::Region;
use super::quant::{Lanes, RowsKernel, STREAMS};
use super::simd::{Isa, LINE};

/// Weight rows of a panel.
pub(crate) const ROWS: usize = super::quant::ROWS;
/// Rows of activations that widen a panel in registers.
const FEW: usize = 6;
/// Rows of activations at a time, of which the second cache holds a chunk: a panel is widened once for so many.
const BLOCK: usize = 264;
/// Panels at a time: a chunk of the rows is brought to the second cache once for so many.
const PANELS: usize = 4;

/// A column of a panel, as it is stored.
type Column = [u8; 2 * ROWS];

/// A type of half precision.
trait Half {
    fn widen<S: Lanes>(s: S, column: &Column) -> S::F;
}

impl Half for f16 {
    #[inline(always)]
    fn widen<S: Lanes>(s: S, column: &Column) -> S::F {
        s.load_f16(column)
    }
}

impl Half for bf16 {
    #[inline(always)]
    fn widen<S: Lanes>(s: S, column: &Column) -> S::F {
        s.load_bf16(column)
    }
}

/// A matrix in half precision, packed.
#[derive(Debug)]
pub(crate) struct Halves {
    dtype: DType,
    k: usize,
    data: Region,
}

impl Halves {
    /// Whether matrices of this type are packed so.
    pub(crate) fn are(dtype: DType) -> bool {
        matches!(dtype, DType::F16 | DType::BF16)
    }

    /// Packs a matrix `[n_out, k]`: `bytes` are those of as many elements, which `Linear` checks.
    pub(crate) fn new(ctx: &Context, dtype: DType, [n_out, k]: [usize; 2], bytes: &[u8]) -> io::Result<Self> {
        let panel = k * ROWS * size_of::<f16>();
        let mut data = ctx.memory.take(n_out.div_ceil(ROWS).saturating_mul(panel))?;
        let rows = bytes.len() / (k * size_of::<f16>()).max(1);
        ctx.pool.chunks(&mut data, panel.max(1), |i, panel| {
            let first = i * ROWS * k * size_of::<f16>();
            let these = &bytes[first..][..ROWS.min(rows - i * ROWS) * k * size_of::<f16>()];
            pack(these.as_chunks().0, k, panel.as_chunks_mut().0);
        });
        Ok(Self { dtype, k, data })
    }

    /// The bytes of a row.
    pub(crate) fn row_bytes(&self) -> usize {
        self.k * size_of::<f16>()
    }
}

/// Turns rows of two bytes an element, `[rows, k]`, to columns; rows behind the last stay zero.
fn pack(rows: &[[u8; 2]], k: usize, columns: &mut [Column]) {
    /// Columns at a time: a line of each row.
    const WIDTH: usize = 32;
    for (j, columns) in columns.chunks_mut(WIDTH).enumerate() {
        for (r, row) in rows.chunks_exact(k).enumerate() {
            for (element, column) in row[j * WIDTH..].iter().zip(&mut *columns) {
                column[2 * r..2 * r + 2].copy_from_slice(element);
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
    let (panels, _) = weights.data[panels.start * panel..panels.end * panel].as_chunks();
    match weights.dtype {
        DType::F16 => isa.run_rows(Multiply::<f16> { panels, x, out, half: PhantomData }),
        _ => isa.run_rows(Multiply::<bf16> { panels, x, out, half: PhantomData }),
    }
}

struct Multiply<'a, 'b, E> {
    /// Panel after panel.
    panels: &'a [Column],
    x: Arranged<'a>,
    out: &'a mut Columns<'b>,
    half: PhantomData<E>,
}

impl<E: Half> RowsKernel for Multiply<'_, '_, E> {
    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        let Self { panels, x, out, .. } = self;
        for block in (0..x.n()).step_by(BLOCK) {
            let n = BLOCK.min(x.n() - block);
            let rows = block..block + n;
            match n {
                // One row waits for memory, which brings several streams that are apart faster than one.
                1 => few::<S, E, 1, STREAMS>(s, panels, x, rows, out),
                2 => few::<S, E, 2, 1>(s, panels, x, rows, out),
                3 => few::<S, E, 3, 1>(s, panels, x, rows, out),
                4 => few::<S, E, 4, 1>(s, panels, x, rows, out),
                5 => few::<S, E, 5, 1>(s, panels, x, rows, out),
                FEW => few::<S, E, FEW, 1>(s, panels, x, rows, out),
                _ => many::<S, E>(s, panels, x, rows, out),
            }
        }
    }
}

/// `N` rows of activations, which `rows` are, and `P` panels at a time.
#[inline(always)]
fn few<S: Lanes, E: Half, const N: usize, const P: usize>(
    s: S,
    panels: &[Column],
    x: Arranged<'_>,
    rows: Range<usize>,
    out: &mut Columns<'_>,
) {
    for (i, panels) in panels.chunks(P * x.k()).enumerate() {
        let mut sums = [[s.splat(0.0); N]; P];
        let mut panel = [&panels[..x.k()]; P];
        for (p, panel) in panel.iter_mut().enumerate() {
            // Behind the last it is that again, whose sums nobody writes.
            *panel = panels.get(p * x.k()..(p + 1) * x.k()).unwrap_or(panel);
        }
        for chunk in chunks(x.k()) {
            let numbers = x.rows(rows.start, N, chunk.start);
            let mut each = [&numbers[0][..chunk.len()]; N];
            for i in 0..N {
                each[i] = &numbers[i][..chunk.len()];
            }
            let mut columns = [&panel[0][chunk.clone()]; P];
            for p in 0..P {
                columns[p] = &panel[p][chunk.clone()];
            }
            for j in 0..chunk.len() {
                for p in 0..P {
                    let column = &columns[p][j];
                    if (j * size_of::<Column>()).is_multiple_of(LINE) {
                        s.prefetch_once(column.as_ptr().wrapping_add(S::AHEAD));
                    }
                    let weights = E::widen(s, column);
                    for i in 0..N {
                        sums[p][i] = s.mul_add(weights, s.splat(each[i][j]), sums[p][i]);
                    }
                }
            }
        }
        for (p, sums) in sums.into_iter().enumerate() {
            for (row, sums) in sums.into_iter().enumerate() {
                let mut numbers = [0.0; ROWS];
                s.store(sums, &mut numbers);
                out.write(rows.start + row, (i * P + p) * ROWS, &numbers);
            }
        }
    }
}

/// Any number of rows, up to [`BLOCK`].
///
/// Sums lie together until they are whole: rows of the result are a power of two apart in most models, and would share a few lines of the
/// caches.
#[inline(always)]
fn many<S: Lanes, E: Half>(
    s: S,
    panels: &[Column],
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
            let numbers = x.rows(rows.start, n, chunk.start);
            for (panel, sums) in group.chunks_exact(x.k()).zip(&mut sums) {
                let wide = &mut wide.0[..chunk.len()];
                for (from, to) in panel[chunk.clone()].iter().zip(&mut *wide) {
                    s.store(E::widen(s, from), to);
                }
                // The next panel's memory, some of it with each row.
                let next = panel[chunk.start..].as_ptr().wrapping_add(x.k()).cast::<u8>();
                let lines = size_of::<Column>() * chunk.len() / LINE;
                let mut row = 0;
                while row < n {
                    let (numbers, sums) = (&numbers[row..], &mut sums[row..n]);
                    let rows = match n - row {
                        24.. if S::TILE >= 24 => tile::<S, 24>(s, wide, numbers, sums),
                        12.. if S::TILE >= 12 => tile::<S, 12>(s, wide, numbers, sums),
                        6.. => tile::<S, 6>(s, wide, numbers, sums),
                        3.. => tile::<S, 3>(s, wide, numbers, sums),
                        _ => tile::<S, 1>(s, wide, numbers, sums),
                    };
                    for line in lines * row / n..lines * (row + rows) / n {
                        s.prefetch(next.wrapping_add(line * LINE));
                    }
                    row += rows;
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
struct Wide([[f32; ROWS]; CHUNK]);

/// Adds the products of the first `N` rows and a chunk of a panel; `N`.
#[inline(always)]
fn tile<S: Lanes, const N: usize>(
    s: S,
    panel: &[[f32; ROWS]],
    rows: &[[f32; CHUNK]],
    to: &mut [[f32; ROWS]],
) -> usize {
    let (Some(rows), Some(to)) = (rows.first_chunk::<N>(), to.first_chunk_mut::<N>()) else {
        unreachable!("a tile has as many rows as there are")
    };
    let mut sums = [s.splat(0.0); N];
    for i in 0..N {
        sums[i] = s.load(&to[i]);
    }
    for (j, column) in panel.iter().enumerate().take(CHUNK) {
        let weights = s.load(column);
        for i in 0..N {
            sums[i] = s.mul_add(weights, s.splat(rows[i][j]), sums[i]);
        }
    }
    for i in 0..N {
        s.store(sums[i], &mut to[i]);
    }
    N
}
