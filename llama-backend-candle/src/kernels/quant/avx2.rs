//! [`Lanes`] on AVX2.

#![allow(unsafe_code)] // intrinsics

use std::arch::asm;
use std::arch::x86_64::*;
use std::convert::Infallible;

use super::activations::LEN;
use super::lanes::{Bytes, Elements, Groups, Lanes, Quads, ROWS, RowsKernel, each_of_eight};
use crate::kernels::simd::x86::Avx2;

/// Four bytes as one number.
#[inline(always)]
pub(super) fn word([a, b, c, d]: [i8; 4]) -> i32 {
    i32::from_le_bytes([a as u8, b as u8, c as u8, d as u8])
}

/// The two halves of some bytes.
#[inline(always)]
fn halves<const ALL: usize, const HALF: usize>(all: &[u8; ALL]) -> [&[u8; HALF]; 2] {
    match (all.first_chunk(), all.last_chunk()) {
        (Some(first), Some(second)) if ALL == 2 * HALF => [first, second],
        _ => unreachable!("two halves are the whole"),
    }
}

/// The two halves of [`ROWS`] numbers.
#[inline(always)]
fn eights(all: &[f32; ROWS]) -> [&[f32; 8]; 2] {
    match (all.first_chunk(), all.last_chunk()) {
        (Some(first), Some(second)) => [first, second],
        _ => unreachable!("sixteen are two times eight"),
    }
}

/// A block's numbers' bits.
#[inline(always)]
fn eights_of(_: Avx2, x: &[f32; LEN]) -> [__m256i; LEN / 8] {
    let (eights, _) = x.as_chunks::<8>();
    // SAFETY: an `Avx2` exists, so the processor has AVX2; each array is of the 32 bytes that are loaded.
    std::array::from_fn(|i| unsafe { _mm256_loadu_si256(eights[i].as_ptr().cast()) })
}

// SAFETY, for every block below: `self` exists, so the processor has AVX2, FMA and F16C; loads and stores are unaligned ones, and go
// through references to arrays of as many bytes as the instruction moves, or slices cut to that length just before.
impl Lanes for Avx2 {
    const DIRECT: usize = 0;
    // Zen 3: little more than what follows at once, which sets its own prefetch going. Past the second cache, or three times as far, it
    // reads memory a quarter slower.
    const AHEAD: usize = 512;
    const STREAMS: bool = true;
    const TILE_OF_BYTES: usize = 4;
    const TILES: usize = 1;
    type I = [__m256i; 2];
    type F = [__m256; 2];
    type Matrices = Infallible;

    #[inline(always)]
    fn matrices(self) -> Option<Infallible> {
        None
    }
    #[inline]
    fn call_rows<K: RowsKernel>(self, kernel: K) {
        #[target_feature(enable = "avx2,fma,f16c")]
        #[inline(never)]
        fn compiled<K: RowsKernel>(avx2: Avx2, kernel: K) {
            kernel.run(avx2);
        }
        // SAFETY: `self` exists, so the processor has the features.
        unsafe { compiled(self, kernel) }
    }
    #[inline(always)]
    fn bytes(self, from: &Bytes) -> Self::I {
        let [a, b]: [&[u8; 32]; 2] = halves(from);
        // SAFETY: see above the impl.
        unsafe { [_mm256_loadu_si256(a.as_ptr().cast()), _mm256_loadu_si256(b.as_ptr().cast())] }
    }
    #[inline(always)]
    fn store_bytes(self, bytes: Self::I, to: &mut Bytes) {
        let (first, second) = to.split_at_mut(32);
        // SAFETY: see above the impl; both have 32 bytes.
        unsafe {
            _mm256_storeu_si256(first.as_mut_ptr().cast(), bytes[0]);
            _mm256_storeu_si256(second.as_mut_ptr().cast(), bytes[1]);
        }
    }
    #[inline(always)]
    fn widen(self, from: &[u8; ROWS]) -> Self::I {
        let [a, b]: [&[u8; 8]; 2] = halves(from);
        // SAFETY: see above the impl.
        unsafe {
            [
                _mm256_cvtepu8_epi32(_mm_loadl_epi64(a.as_ptr().cast())),
                _mm256_cvtepu8_epi32(_mm_loadl_epi64(b.as_ptr().cast())),
            ]
        }
    }
    #[inline(always)]
    fn widen_signed(self, from: &[u8; ROWS]) -> Self::I {
        let [a, b]: [&[u8; 8]; 2] = halves(from);
        // SAFETY: see above the impl.
        unsafe {
            [
                _mm256_cvtepi8_epi32(_mm_loadl_epi64(a.as_ptr().cast())),
                _mm256_cvtepi8_epi32(_mm_loadl_epi64(b.as_ptr().cast())),
            ]
        }
    }
    #[inline(always)]
    fn and(self, a: Self::I, mask: u8) -> Self::I {
        // SAFETY: see above the impl.
        unsafe {
            let mask = _mm256_set1_epi8(mask as i8);
            [_mm256_and_si256(a[0], mask), _mm256_and_si256(a[1], mask)]
        }
    }
    #[inline(always)]
    fn shift_right(self, a: Self::I, n: u32, mask: u8) -> Self::I {
        // SAFETY: see above the impl.
        unsafe {
            let n = _mm_cvtsi32_si128(n as i32);
            self.and([_mm256_srl_epi16(a[0], n), _mm256_srl_epi16(a[1], n)], mask)
        }
    }
    #[inline(always)]
    fn shift_left(self, a: Self::I, n: u32, mask: u8) -> Self::I {
        let a = self.and(a, mask);
        // SAFETY: see above the impl.
        unsafe {
            let n = _mm_cvtsi32_si128(n as i32);
            [_mm256_sll_epi16(a[0], n), _mm256_sll_epi16(a[1], n)]
        }
    }
    #[inline(always)]
    fn or(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above the impl.
        unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
    }
    #[inline(always)]
    fn subtract(self, a: Self::I, b: u8) -> Self::I {
        // SAFETY: see above the impl.
        unsafe { a.map(|a| _mm256_sub_epi8(a, _mm256_set1_epi8(b as i8))) }
    }
    #[inline(always)]
    fn look_up(self, table: &[i8; 16], a: Self::I) -> Self::I {
        // SAFETY: see above the impl.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            [_mm256_shuffle_epi8(table, a[0]), _mm256_shuffle_epi8(table, a[1])]
        }
    }
    #[inline(always)]
    fn signed(self, a: Self::I) -> Self::I {
        a
    }
    #[inline(always)]
    fn apart(self, a: Self::I) -> Option<[Self::I; 2]> {
        // SAFETY: see above the impl.
        unsafe {
            let zero = _mm256_setzero_si256();
            Some([a.map(|a| _mm256_abs_epi8(a)), a.map(|a| _mm256_cmpgt_epi8(zero, a))])
        }
    }
    #[inline(always)]
    fn dots<W: Groups<Self>, const N: usize, const FROM: usize, const TO: usize>(
        self,
        w: W,
        x: [&Quads; N],
    ) -> [Self::I; N] {
        // SAFETY: see above the impl.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            let mut sums = [[_mm256_setzero_si256(); 2]; N];
            let mut pairs = sums;
            let of_zeros = w.of_zeros(self);
            // A group for all rows, before the next: what is loaded is used at once.
            each_of_eight!(G: if (FROM..TO).contains(&G) {
                let fit = const { fit::<W::Elements>() };
                let (group, signs) = (w.group(self, G), w.signs(self, G));
                for i in 0..N {
                    let x = _mm256_set1_epi32(word(x[i][G]));
                    for h in 0..2 {
                        // The instruction takes unsigned times signed: a negative element passes on its sign.
                        let products = match signs {
                            // To the complement, `-x - 1`, which takes any unit: short by its magnitude, as it is for zeros.
                            Some(signs) => _mm256_maddubs_epi16(group[h], _mm256_xor_si256(x, signs[h])),
                            None if W::Elements::SIGNED => {
                                _mm256_maddubs_epi16(_mm256_abs_epi8(group[h]), _mm256_sign_epi8(x, group[h]))
                            }
                            None => _mm256_maddubs_epi16(group[h], x),
                        };
                        pairs[i][h] = match (G - FROM) % fit {
                            0 => products,
                            _ => _mm256_add_epi16(pairs[i][h], products),
                        };
                        if (G - FROM + 1).is_multiple_of(fit) || G + 1 == TO {
                            let widened = _mm256_madd_epi16(pairs[i][h], ones);
                            let sum = match signs {
                                Some(_) if G == FROM => _mm256_sub_epi32(widened, of_zeros[h]),
                                _ => _mm256_add_epi32(sums[i][h], widened),
                            };
                            sums[i][h] = in_order::<N>(sum);
                        } else {
                            pairs[i][h] = in_order::<N>(pairs[i][h]);
                        }
                    }
                }
            });
            sums
        }
    }
    #[inline(always)]
    fn largest(self, x: &[f32; LEN]) -> f32 {
        // Of positive numbers the larger has the larger bits; those of infinity and NaN are larger than all.
        // SAFETY: see above the impl.
        unsafe {
            let bits = eights_of(self, x).map(|x| _mm256_and_si256(x, _mm256_set1_epi32(i32::MAX)));
            let max =
                _mm256_max_epu32(_mm256_max_epu32(bits[0], bits[1]), _mm256_max_epu32(bits[2], bits[3]));
            let max = _mm_max_epu32(_mm256_castsi256_si128(max), _mm256_extracti128_si256::<1>(max));
            let max = _mm_max_epu32(max, _mm_shuffle_epi32::<0b_11_10>(max));
            _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epu32(max, _mm_shuffle_epi32::<0b_01>(max))))
        }
    }
    #[inline(always)]
    fn round(self, x: &[f32; LEN], by: f32) -> (Quads, [i32; 2]) {
        // SAFETY: see above the impl.
        unsafe {
            let by = _mm256_set1_ps(by);
            let q = eights_of(self, x).map(|x| _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_castsi256_ps(x), by)));
            // Halves of vectors are narrowed each by itself: groups of four become lanes, but all lower halves' come before the upper ones'.
            let pairs = [_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3])];
            let bytes = _mm256_packs_epi16(pairs[0], pairs[1]);
            let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            let mut quads = [[0; 4]; LEN / 4];
            _mm256_storeu_si256(quads.as_mut_ptr().cast(), bytes);
            let sums = _mm256_hadd_epi32(_mm256_add_epi32(q[0], q[1]), _mm256_add_epi32(q[2], q[3]));
            let sums = _mm256_hadd_epi32(sums, sums);
            let sums = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
            (quads, [_mm_cvtsi128_si32(sums), _mm_extract_epi32::<1>(sums)])
        }
    }
    #[inline(always)]
    fn float(self, a: Self::I) -> Self::F {
        // SAFETY: see above the impl.
        unsafe { [_mm256_cvtepi32_ps(a[0]), _mm256_cvtepi32_ps(a[1])] }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        // SAFETY: see above the impl.
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    fn load(self, from: &[f32; ROWS]) -> Self::F {
        let [a, b] = eights(from);
        // SAFETY: see above the impl.
        unsafe { [_mm256_loadu_ps(a.as_ptr()), _mm256_loadu_ps(b.as_ptr())] }
    }
    #[inline(always)]
    fn load_f16(self, from: &[u8; 2 * ROWS]) -> Self::F {
        let [a, b]: [&[u8; 16]; 2] = halves(from);
        // SAFETY: see above the impl.
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(a.as_ptr().cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(b.as_ptr().cast())),
            ]
        }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u8; 2 * ROWS]) -> Self::F {
        let [a, b]: [&[u8; 16]; 2] = halves(from);
        // SAFETY: see above the impl.
        unsafe {
            let widened = [
                _mm256_cvtepu16_epi32(_mm_loadu_si128(a.as_ptr().cast())),
                _mm256_cvtepu16_epi32(_mm_loadu_si128(b.as_ptr().cast())),
            ];
            widened.map(|bits| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits)))
        }
    }
    #[inline(always)]
    fn store(self, v: Self::F, to: &mut [f32; ROWS]) {
        let (first, second) = to.split_at_mut(8);
        // SAFETY: see above the impl; both have eight numbers.
        unsafe {
            _mm256_storeu_ps(first.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(second.as_mut_ptr(), v[1]);
        }
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above the impl.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: see above the impl.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    fn prefetch(self, line: *const u8) {
        // SAFETY: see above the impl; a prefetch of any address is no access.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
    }
}

/// The same, a sum of one of `N` rows, of which the compiler knows nothing: sums are taken as they are written, group by group. Left free, it
/// takes them row by row, and of more than a few rows has to keep all groups' weights outside of the registers.
#[inline]
#[target_feature(enable = "avx2")]
fn in_order<const N: usize>(mut v: __m256i) -> __m256i {
    if N > 2 {
        // SAFETY: it is no instruction.
        unsafe { asm!("/* {0} */", inout(ymm_reg) v, options(nomem, nostack, preserves_flags)) };
    }
    v
}

/// The groups whose products, two to a sum, fit in sums of 16 bits: `2 · (2^BITS - 1) · 127` each.
const fn fit<E: Elements>() -> usize {
    match E::BITS {
        ..=4 => 8,
        5 => 4,
        6 => 2,
        _ => 1,
    }
}
