//! [`Lanes`] on AVX-512 with VNNI.

#![allow(unsafe_code)] // intrinsics

use std::arch::x86_64::*;

use super::activations::LEN;
use super::amx::Amx;
use super::avx2::word;
use super::lanes::{Bytes, Elements, Groups, Lanes, Quads, ROWS, RowsKernel, each_of_eight};
use crate::kernels::simd::x86::Avx2;

/// The proof that the processor has AVX-512 (F, BW, VL, DQ) with VNNI, beside all that [`Avx2`] proves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vnni {
    avx2: Avx2,
    amx: Option<Amx>,
}

impl Vnni {
    pub(crate) fn detect() -> Option<Self> {
        let avx2 = Avx2::detect()?;
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni"))
        .then(|| Self { avx2, amx: Amx::detect() })
    }

    /// The same without AMX, where there is that.
    #[cfg(test)]
    pub(crate) fn without_amx(self) -> Option<Self> {
        self.amx.map(|_| Self { amx: None, ..self })
    }

    /// What it proves beside.
    #[inline]
    pub(crate) fn avx2(self) -> Avx2 {
        self.avx2
    }
}

// SAFETY, for every block below: `self` exists, so the processor has AVX-512 with BW, DQ, VL and VNNI; loads and stores are unaligned
// ones, and go through references to arrays of as many bytes as the instruction moves, or slices cut to that length just before.
impl Lanes for Vnni {
    const DIRECT: usize = 8;
    // Zen 4 reads one panel from end to end fastest, and what is asked for besides gets in the way of its own prefetch.
    const AHEAD: usize = 0;
    const STREAMS: bool = false;
    const TILE_OF_BYTES: usize = 8;
    const TILES: usize = 4;
    type I = __m512i;
    type F = __m512;
    type Matrices = Amx;

    #[inline(always)]
    fn matrices(self) -> Option<Amx> {
        self.amx
    }
    #[inline(always)]
    fn offset<E: Elements>() -> Option<f32> {
        if E::SIGNED { Some(128.0) } else { E::OFFSET }
    }
    #[inline]
    fn call_rows<K: RowsKernel>(self, kernel: K) {
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        #[inline(never)]
        fn compiled<K: RowsKernel>(vnni: Vnni, kernel: K) {
            kernel.run(vnni);
        }
        // SAFETY: `self` exists, so the processor has the features.
        unsafe { compiled(self, kernel) }
    }
    #[inline(always)]
    fn bytes(self, from: &Bytes) -> __m512i {
        // SAFETY: see above the impl.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn store_bytes(self, bytes: __m512i, to: &mut Bytes) {
        // SAFETY: see above the impl.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), bytes) }
    }
    #[inline(always)]
    fn widen(self, from: &[u8; ROWS]) -> __m512i {
        // SAFETY: see above the impl.
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn widen_signed(self, from: &[u8; ROWS]) -> __m512i {
        // SAFETY: see above the impl.
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn and(self, a: __m512i, mask: u8) -> __m512i {
        // SAFETY: see above the impl.
        unsafe { _mm512_and_si512(a, _mm512_set1_epi8(mask as i8)) }
    }
    #[inline(always)]
    fn shift_right(self, a: __m512i, n: u32, mask: u8) -> __m512i {
        // SAFETY: see above the impl.
        unsafe {
            let shifted = _mm512_srl_epi16(a, _mm_cvtsi32_si128(n as i32));
            _mm512_and_si512(shifted, _mm512_set1_epi8(mask as i8))
        }
    }
    #[inline(always)]
    fn shift_left(self, a: __m512i, n: u32, mask: u8) -> __m512i {
        // SAFETY: see above the impl.
        unsafe {
            let masked = _mm512_and_si512(a, _mm512_set1_epi8(mask as i8));
            _mm512_sll_epi16(masked, _mm_cvtsi32_si128(n as i32))
        }
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see above the impl.
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    fn subtract(self, a: __m512i, b: u8) -> __m512i {
        // SAFETY: see above the impl.
        unsafe { _mm512_sub_epi8(a, _mm512_set1_epi8(b as i8)) }
    }
    #[inline(always)]
    fn look_up(self, table: &[i8; 16], a: __m512i) -> __m512i {
        // SAFETY: see above the impl.
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, a)
        }
    }
    #[inline(always)]
    fn signed(self, a: __m512i) -> __m512i {
        // SAFETY: see above the impl.
        unsafe { _mm512_xor_si512(a, _mm512_set1_epi8(-128)) } // too large by 128, and unsigned
    }
    #[inline(always)]
    fn dots<W: Groups<Self>, const N: usize, const FROM: usize, const TO: usize>(
        self,
        w: W,
        x: [&Quads; N],
    ) -> [__m512i; N] {
        // SAFETY: see above the impl.
        unsafe {
            let mut sums = [_mm512_setzero_si512(); N];
            each_of_eight!(G: if (FROM..TO).contains(&G) {
                let w = w.group(self, G);
                for i in 0..N {
                    sums[i] = _mm512_dpbusd_epi32(sums[i], w, _mm512_set1_epi32(word(x[i][G])));
                }
            });
            sums
        }
    }
    #[inline(always)]
    fn largest(self, x: &[f32; LEN]) -> f32 {
        self.avx2.largest(x)
    }
    #[inline(always)]
    fn round(self, x: &[f32; LEN], by: f32) -> (Quads, [i32; 2]) {
        self.avx2.round(x, by)
    }
    #[inline(always)]
    fn float(self, a: __m512i) -> __m512 {
        // SAFETY: see above the impl.
        unsafe { _mm512_cvtepi32_ps(a) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: see above the impl.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, from: &[f32; ROWS]) -> __m512 {
        // SAFETY: see above the impl.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn load_f16(self, from: &[u8; 2 * ROWS]) -> __m512 {
        // SAFETY: see above the impl.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u8; 2 * ROWS]) -> __m512 {
        // SAFETY: see above the impl.
        unsafe {
            let widened = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(widened))
        }
    }
    #[inline(always)]
    fn store(self, v: __m512, to: &mut [f32; ROWS]) {
        // SAFETY: see above the impl.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above the impl.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see above the impl.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn prefetch(self, line: *const u8) {
        // SAFETY: see above the impl; a prefetch of any address is no access.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
    }
}
