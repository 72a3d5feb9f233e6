//! Products of weights in half precision, f16 or bf16, with f32 activations: `x · Wᵀ`.
//!
//! A matrix is packed once, at load, into panels of [`ROWS`] rows that lie side by side, column after column: `[k][ROWS]`, in its own type
//! and once in memory. A vector runs across rows, so that no lanes are ever added: each sum is one chain of fused multiply-adds, from the
//! first column to the last. That order knows neither the batch nor the part of it that is computed at a time.
//!
//! One group of activations widens a panel in registers, as memory brings it; for more, some columns of a panel are widened first and stay
//! in the first cache while all groups use them.
//!
//! Shapes: `x: [n, k]`, weights `[n_out, k]`, `out: [n, n_out]`.

use std::io;
use std::marker::PhantomData;
use std::ops::Range;

use half::{bf16, f16};
use llama_backend::DType;

use super::Context;
use super::columns::Columns;
use super::dense::{Arranged, CHUNK, GROUP, Group, chunks};
use super::memory::Region;
use super::quant::{Lanes, RowsKernel, STREAMS};
use super::simd::{Isa, LINE};

/// Weight rows of a panel.
pub(crate) const ROWS: usize = super::quant::ROWS;
/// Groups of activations at a time, of which the second cache holds a chunk: a panel is widened once for so many.
const BLOCK: usize = 44;
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
        match (self.x.n_groups(), self.x.group()) {
            (0, _) => {}
            // One row waits for memory, which brings several streams that are apart faster than one, and so do two, as registers allow.
            (1, 1) => self.few::<S, 1, STREAMS>(s),
            (1, 2) => self.few::<S, 2, 2>(s),
            (1, 3) => self.few::<S, 3, 1>(s),
            (1, 4) => self.few::<S, 4, 1>(s),
            (1, 5) => self.few::<S, 5, 1>(s),
            (1, _) => self.few::<S, GROUP, 1>(s),
            // Of several groups, none has fewer rows than four.
            (_, 4) => self.several::<S, 4>(s),
            (_, 5) => self.several::<S, 5>(s),
            _ => self.several::<S, GROUP>(s),
        }
    }
}

impl<E: Half> Multiply<'_, '_, E> {
    /// Several groups of `G` rows, in the tiles that the processor has registers for.
    #[inline(always)]
    fn several<S: Lanes, const G: usize>(self, s: S) {
        if const { S::TILES >= 4 } { self.many::<S, G, 2>(s) } else { self.many::<S, G, 1>(s) }
    }

    /// One group of `G` rows, and `P` panels at a time.
    #[inline(always)]
    fn few<S: Lanes, const G: usize, const P: usize>(self, s: S) {
        let Self { panels, x, out, .. } = self;
        for (i, panels) in panels.chunks(P * x.k()).enumerate() {
            let mut sums = [[s.splat(0.0); G]; P];
            let mut panel = [&panels[..x.k()]; P];
            for (p, panel) in panel.iter_mut().enumerate() {
                // Behind the last it is that again, whose sums nobody writes.
                *panel = panels.get(p * x.k()..(p + 1) * x.k()).unwrap_or(panel);
            }
            for chunk in chunks(x.k()) {
                let numbers = &x.groups::<G>(0..1, chunk.start)[0][..chunk.len()];
                let mut columns = [&panel[0][chunk.clone()]; P];
                for p in 0..P {
                    columns[p] = &panel[p][chunk.clone()];
                }
                for (j, numbers) in numbers.iter().enumerate() {
                    for p in 0..P {
                        let column = &columns[p][j];
                        let weights = E::widen(s, column);
                        for i in 0..G {
                            sums[p][i] = s.mul_add(weights, s.splat(numbers[i]), sums[p][i]);
                        }
                    }
                }
            }
            for (p, sums) in sums.into_iter().enumerate() {
                for (row, sums) in sums.into_iter().enumerate() {
                    let mut numbers = [0.0; ROWS];
                    s.store(sums, &mut numbers);
                    out.write(row, (i * P + p) * ROWS, [numbers]);
                }
            }
        }
    }

    /// Several groups of `G` rows, in tiles of `T` groups and as many panels, whose sums registers hold.
    ///
    /// Sums lie together until they are whole: rows of the result are a power of two apart in most models, and would share a few lines of
    /// the caches.
    #[inline(always)]
    fn many<S: Lanes, const G: usize, const T: usize>(self, s: S) {
        const { assert!(PANELS.is_multiple_of(T) && CHUNK.is_multiple_of(T)) };
        let Self { panels, x, out, .. } = self;
        let k = x.k();
        let mut wide = Wide([[0.0; ROWS]; CHUNK]);
        let mut sums = [[[[0.0; ROWS]; G]; BLOCK]; PANELS];
        for block in (0..x.n_groups()).step_by(BLOCK) {
            let n = BLOCK.min(x.n_groups() - block);
            for (i, panels) in panels.chunks(PANELS * k).enumerate() {
                for from in (0..k).step_by(CHUNK / T) {
                    let columns = from..k.min(from + CHUNK / T);
                    let groups = x.groups::<G>(block..block + n, from / CHUNK * CHUNK);
                    for (panels, sums) in panels.chunks(T * k).zip(sums.as_chunks_mut::<T>().0) {
                        let wide = &mut wide.0.as_chunks_mut::<T>().0[..columns.len()];
                        // Where there are fewer than `T` panels, the last are what they were: there are no columns for their sums.
                        for (p, panel) in panels.chunks_exact(k).enumerate() {
                            for (column, wide) in panel[columns.clone()].iter().zip(&mut *wide) {
                                s.store(E::widen(s, column), &mut wide[p]);
                            }
                        }
                        // The next panels' memory, which tiles ask for evenly.
                        let next = panels.as_ptr().wrapping_add(T * k + from).cast::<u8>();
                        let bytes = size_of::<Column>() * columns.len();
                        let bytes = bytes.div_ceil(n.div_ceil(T)).next_multiple_of(LINE);
                        for t in (0..n).step_by(T) {
                            let of_panel = |p| next.wrapping_add(p * k * size_of::<Column>() + t / T * bytes);
                            let share = Share { from: std::array::from_fn(of_panel), bytes };
                            match groups[t..].first_chunk::<T>() {
                                Some(groups) => tile::<S, G, T, T>(s, wide, groups, from, sums, t, share),
                                None => tile::<S, G, 1, T>(s, wide, &[groups[t]], from, sums, t, share),
                            }
                        }
                    }
                }
                // Row by row: each is another page, which is come to once for all panels.
                for (r, row) in (block * G..x.n().min((block + n) * G)).enumerate() {
                    out.write(row, i * PANELS * ROWS, sums.iter().map(|sums| sums.as_flattened()[r]));
                }
            }
        }
    }
}

/// Columns in a turn of a tile's loop: memory is asked for lines, of which a column of a group is a part.
const TURN: usize = 8;

/// A tile's share of the next panels' memory, for which it asks: so many bytes of each.
#[derive(Clone, Copy)]
struct Share<const T: usize> {
    from: [*const u8; T],
    bytes: usize,
}

/// Columns of panels, widened: lines of the cache.
#[repr(align(64))]
struct Wide([[f32; ROWS]; CHUNK]);

/// Adds the products of `N` groups, from group `t` on, with the columns of `T` panels from `from` on to their sums. Those of the first
/// columns begin the sums: what stood there is not read.
#[inline(always)]
fn tile<S: Lanes, const G: usize, const N: usize, const T: usize>(
    s: S,
    wide: &[[[f32; ROWS]; T]],
    groups: &[Group<G>; N],
    from: usize,
    to: &mut [[[[f32; ROWS]; G]; BLOCK]; T],
    t: usize,
    share: Share<T>,
) {
    let in_chunk = from % CHUNK;
    let mut columns = [&groups[0][in_chunk..][..wide.len()]; N];
    for n in 0..N {
        columns[n] = &groups[n][in_chunk..][..wide.len()];
    }
    let mut sums = [[[s.splat(0.0); G]; N]; T];
    if from > 0 {
        for n in 0..N {
            for p in 0..T {
                for i in 0..G {
                    sums[p][n][i] = s.load(&to[p][t + n][i]);
                }
            }
        }
    }
    let (turns, rest) = wide.as_chunks::<TURN>();
    let each = share.bytes.div_ceil(turns.len().max(1)).next_multiple_of(LINE);
    for (j, wide) in turns.iter().enumerate() {
        let asked = j * each;
        let bytes = each.min(share.bytes.saturating_sub(asked));
        for from in share.from {
            s.prefetch_share(from.wrapping_add(asked), bytes, 0, 1);
        }
        let mut x = [&columns[0].as_chunks::<TURN>().0[j]; N];
        for n in 0..N {
            x[n] = &columns[n].as_chunks().0[j];
            // The next tile's columns.
            s.prefetch_share(x[n].as_ptr().wrapping_add(N * CHUNK).cast(), size_of_val(x[n]), 0, 1);
        }
        for c in 0..TURN {
            let mut column = [&x[0][c]; N];
            for n in 0..N {
                column[n] = &x[n][c];
            }
            add_column(s, &wide[c], column, &mut sums);
        }
    }
    for (j, wide) in rest.iter().enumerate() {
        let j = TURN * turns.len() + j;
        let mut column = [&columns[0][j]; N];
        for n in 0..N {
            column[n] = &columns[n][j];
        }
        add_column(s, wide, column, &mut sums);
    }
    for n in 0..N {
        for p in 0..T {
            for i in 0..G {
                s.store(sums[p][n][i], &mut to[p][t + n][i]);
            }
        }
    }
}

/// Adds the products of one column of some panels and of some groups.
#[inline(always)]
fn add_column<S: Lanes, const G: usize, const N: usize, const T: usize>(
    s: S,
    wide: &[[f32; ROWS]; T],
    x: [&[f32; G]; N],
    sums: &mut [[[S::F; G]; N]; T],
) {
    let mut weights = [s.load(&wide[0]); T];
    for p in 1..T {
        weights[p] = s.load(&wide[p]);
    }
    for n in 0..N {
        for i in 0..G {
            let x = s.splat(x[n][i]);
            for p in 0..T {
                sums[p][n][i] = s.mul_add(weights[p], x, sums[p][n][i]);
            }
        }
    }
}
