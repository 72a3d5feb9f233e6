//! [`Lanes`] on AVX2, and on AVX-512 with VNNI.

#![allow(unsafe_code)] // intrinsics

use std::arch::x86_64::*;

use super::lanes::{Bytes, Elements, IntKernel, Lanes, ROWS};
use crate::kernels::simd::x86::Avx2;

/// The proof that the processor has AVX-512 (F, BW, VL, DQ) with VNNI, beside all that [`Avx2`] proves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vnni {
    avx2: Avx2,
}

impl Vnni {
    pub(crate) fn detect() -> Option<Self> {
        let avx2 = Avx2::detect()?;
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni"))
        .then_some(Self { avx2 })
    }

    /// What it proves beside.
    #[inline]
    pub(crate) fn avx2(self) -> Avx2 {
        self.avx2
    }

    #[inline]
    pub(crate) fn run_int<K: IntKernel>(self, kernel: K) {
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        fn compiled<K: IntKernel>(vnni: Vnni, kernel: K) {
            kernel.run(vnni);
        }
        // SAFETY: `self` exists, so the processor has the features.
        unsafe { compiled(self, kernel) }
    }
}

impl Avx2 {
    #[inline]
    pub(crate) fn run_int<K: IntKernel>(self, kernel: K) {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn compiled<K: IntKernel>(avx2: Avx2, kernel: K) {
            kernel.run(avx2);
        }
        // SAFETY: `self` exists, so the processor has the features.
        unsafe { compiled(self, kernel) }
    }
}

/// Four bytes as one number.
#[inline(always)]
fn word([a, b, c, d]: [i8; 4]) -> i32 {
    i32::from_le_bytes([a as u8, b as u8, c as u8, d as u8])
}

/// The part of `all` that a half of the rows has.
#[inline(always)]
fn part<const ALL: usize, const PART: usize>(all: &[u8; ALL], half: usize) -> &[u8; PART] {
    match all[half * PART..].first_chunk() {
        Some(part) => part,
        None => unreachable!("there are two halves"),
    }
}

// SAFETY, for every block below: `self` exists, so the processor has AVX2, FMA and F16C; loads and stores are unaligned ones, and go
// through references to arrays of as many bytes as the instruction moves, or slices cut to that length just before.
impl Lanes for Avx2 {
    const HALVES: usize = 2;
    const TILE: usize = 4;
    const DIRECT: usize = 2;
    type I = __m256i;
    type F = __m256;

    #[inline(always)]
    fn zero(self) -> __m256i {
        // SAFETY: see above the impl.
        unsafe { _mm256_setzero_si256() }
    }
    #[inline(always)]
    fn bytes(self, from: &Bytes, half: usize) -> __m256i {
        let from: &[u8; 32] = part(from, half);
        // SAFETY: see above the impl.
        unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn store_bytes(self, bytes: __m256i, to: &mut Bytes, half: usize) {
        let to = &mut to[half * 32..half * 32 + 32];
        // SAFETY: see above the impl.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), bytes) }
    }
    #[inline(always)]
    fn widen(self, from: &[u8; ROWS], half: usize) -> __m256i {
        let from: &[u8; 8] = part(from, half);
        // SAFETY: see above the impl.
        unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn widen_signed(self, from: &[u8; ROWS], half: usize) -> __m256i {
        let from: &[u8; 8] = part(from, half);
        // SAFETY: see above the impl.
        unsafe { _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn and(self, a: __m256i, mask: u8) -> __m256i {
        // SAFETY: see above the impl.
        unsafe { _mm256_and_si256(a, _mm256_set1_epi8(mask as i8)) }
    }
    #[inline(always)]
    fn shift_right(self, a: __m256i, n: u32, mask: u8) -> __m256i {
        // SAFETY: see above the impl.
        unsafe {
            let shifted = _mm256_srl_epi16(a, _mm_cvtsi32_si128(n as i32));
            _mm256_and_si256(shifted, _mm256_set1_epi8(mask as i8))
        }
    }
    #[inline(always)]
    fn shift_left(self, a: __m256i, n: u32, mask: u8) -> __m256i {
        // SAFETY: see above the impl.
        unsafe {
            let masked = _mm256_and_si256(a, _mm256_set1_epi8(mask as i8));
            _mm256_sll_epi16(masked, _mm_cvtsi32_si128(n as i32))
        }
    }
    #[inline(always)]
    fn or(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: see above the impl.
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    fn look_up(self, table: &[i8; 16], a: __m256i) -> __m256i {
        // SAFETY: see above the impl.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            _mm256_shuffle_epi8(table, a)
        }
    }
    #[inline(always)]
    fn signed(self, a: __m256i) -> __m256i {
        a
    }
    #[inline(always)]
    fn dot<E: Elements, const G: usize>(self, w: &[__m256i; G], x: &[[i8; 4]; G], minus_sum: i32) -> __m256i {
        // Sums of two products in 16 bits, of which so many fit: 2 · (2^BITS - 1) · 127 each.
        let fit = match E::BITS {
            _ if E::SIGNED => 1,
            ..=4 => 8,
            5 => 4,
            6 => 2,
            _ => 1,
        };
        // SAFETY: see above the impl.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            let mut sum = match E::OFFSET_LOG2 {
                Some(log2) => _mm256_sll_epi32(_mm256_set1_epi32(minus_sum), _mm_cvtsi32_si128(log2 as i32)),
                None => _mm256_setzero_si256(),
            };
            let mut pairs = _mm256_setzero_si256();
            for g in 0..G {
                let x = _mm256_set1_epi32(word(x[g]));
                // The instruction takes unsigned times signed: a negative element passes its sign on.
                let products = if E::SIGNED {
                    _mm256_maddubs_epi16(_mm256_abs_epi8(w[g]), _mm256_sign_epi8(x, w[g]))
                } else {
                    _mm256_maddubs_epi16(w[g], x)
                };
                pairs = if g % fit == 0 { products } else { _mm256_add_epi16(pairs, products) };
                if (g + 1) % fit == 0 || g + 1 == G {
                    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
                }
            }
            sum
        }
    }
    #[inline(always)]
    fn float(self, a: __m256i) -> __m256 {
        // SAFETY: see above the impl.
        unsafe { _mm256_cvtepi32_ps(a) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: see above the impl.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, from: &[f32; ROWS], half: usize) -> __m256 {
        let from = &from[half * 8..half * 8 + 8];
        // SAFETY: see above the impl.
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn load_f16(self, from: &[u8; 2 * ROWS], half: usize) -> __m256 {
        let from: &[u8; 16] = part(from, half);
        // SAFETY: see above the impl.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn store(self, v: __m256, to: &mut [f32; ROWS], half: usize) {
        let to = &mut to[half * 8..half * 8 + 8];
        // SAFETY: see above the impl.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above the impl.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: see above the impl.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn prefetch(self, line: *const u8) {
        // SAFETY: see above the impl; a prefetch of any address is no access.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
    }
}

// SAFETY, for every block below: `self` exists, so the processor has AVX-512 with BW, DQ, VL and VNNI; loads and stores are unaligned
// ones, and go through references to arrays of as many bytes as the instruction moves, or slices cut to that length just before.
impl Lanes for Vnni {
    const HALVES: usize = 1;
    const TILE: usize = 8;
    const DIRECT: usize = 8;
    type I = __m512i;
    type F = __m512;

    #[inline(always)]
    fn zero(self) -> __m512i {
        // SAFETY: see above the impl.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    fn bytes(self, from: &Bytes, _: usize) -> __m512i {
        // SAFETY: see above the impl.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn store_bytes(self, bytes: __m512i, to: &mut Bytes, _: usize) {
        // SAFETY: see above the impl.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), bytes) }
    }
    #[inline(always)]
    fn widen(self, from: &[u8; ROWS], _: usize) -> __m512i {
        // SAFETY: see above the impl.
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn widen_signed(self, from: &[u8; ROWS], _: usize) -> __m512i {
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
    fn dot<E: Elements, const G: usize>(self, w: &[__m512i; G], x: &[[i8; 4]; G], minus_sum: i32) -> __m512i {
        let offset = if E::SIGNED { Some(7) } else { E::OFFSET_LOG2 };
        // SAFETY: see above the impl.
        unsafe {
            let mut sum = match offset {
                Some(log2) => _mm512_sll_epi32(_mm512_set1_epi32(minus_sum), _mm_cvtsi32_si128(log2 as i32)),
                None => _mm512_setzero_si512(),
            };
            for g in 0..G {
                let x = _mm512_set1_epi32(word(x[g]));
                sum = _mm512_dpbusd_epi32(sum, w[g], x);
            }
            sum
        }
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
    fn load(self, from: &[f32; ROWS], _: usize) -> __m512 {
        // SAFETY: see above the impl.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn load_f16(self, from: &[u8; 2 * ROWS], _: usize) -> __m512 {
        // SAFETY: see above the impl.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn store(self, v: __m512, to: &mut [f32; ROWS], _: usize) {
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
