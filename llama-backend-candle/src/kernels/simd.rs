//! Eight f32 lanes at a time, on whatever the processor has.
//!
//! A kernel is written once over [`Simd`] and compiled for each instruction set; [`Isa`] is chosen once, at load, from what
//! the processor says of itself. An ordinary build targets plain x86-64, so a choice at compile time would leave AVX2 unused.
//! A vector type's value is the proof that the processor has its instructions: [`Avx2`] is made by detection alone.

use std::fmt::Debug;

use half::{bf16, f16};

#[cfg(target_arch = "x86_64")]
use super::quant::vnni::Vnni;
use super::quant::{self, Lanes, RowsKernel};

/// The lanes of a vector.
pub(crate) const LANES: usize = 8;
/// Bytes that memory brings at a time.
pub(crate) const LINE: usize = 64;

/// What a kernel may do with [`LANES`] numbers at once.
///
/// Every method is `#[inline(always)]`, so that it becomes part of a function compiled for the instruction set.
pub(crate) trait Simd: Copy + Debug {
    /// [`LANES`] numbers.
    type V: Copy;

    /// Runs a kernel as a function of its own, compiled for this instruction set.
    ///
    /// For a part of another kernel as well: what is all inlined into one function takes the compiler many times as long.
    fn call<K: Kernel>(self, kernel: K) -> K::Out;

    fn splat(self, x: f32) -> Self::V;
    fn load(self, from: &[f32; LANES]) -> Self::V;
    fn load_f16(self, from: &[f16; LANES]) -> Self::V;
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::V;
    fn store(self, v: Self::V, to: &mut [f32; LANES]);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// The larger; `b` where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Asks for a line of memory that will be read soon, into the second cache. The address need not be anybody's.
    fn prefetch(self, line: *const u8);
    /// The same, into the first cache: of a line that will be read very soon.
    fn prefetch_near(self, line: *const u8);
    /// To the nearest integer.
    fn round(self, v: Self::V) -> Self::V;
    /// `2^n` of whole numbers within `-126..=127`.
    fn pow2(self, n: Self::V) -> Self::V;

    /// Rows for columns: lane `i` of vector `j` becomes lane `j` of vector `i`.
    fn transpose(self, rows: [Self::V; LANES]) -> [Self::V; LANES];

    /// The lanes' sum, always in the same order.
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let l = self.to_array(v);
        ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]))
    }

    /// The lanes' sums of four vectors, each in the order of [`sum`](Self::sum).
    #[inline(always)]
    fn sum_four(self, v: [Self::V; 4]) -> [f32; 4] {
        [self.sum(v[0]), self.sum(v[1]), self.sum(v[2]), self.sum(v[3])]
    }

    #[inline(always)]
    fn to_array(self, v: Self::V) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        lanes
    }

    /// `e^x` to within 4e-7 of itself: `2^n · e^r` with `|r| ≤ ln 2 / 2` and a polynomial for `e^r`. Below -87 it stays at `e^-87`, above 88 at `e^88`; NaN stays NaN.
    #[inline(always)]
    fn exp(self, x: Self::V) -> Self::V {
        // ln 2 in two parts: n times the first is exact, so that r keeps its bits.
        const LN2_HIGH: f32 = 0.693_359_4;
        const LN2_LOW: f32 = -2.121_944_4e-4;
        // Taylor's coefficients from 1/6! down: at |r| ≤ 0.347 the next term is below 2^-23.
        const TERMS: [f32; 6] = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0];
        let x = self.min(self.splat(88.0), x);
        let x = self.max(self.splat(-87.0), x);
        let n = self.round(self.mul(x, self.splat(std::f32::consts::LOG2_E)));
        let r = self.mul_add(n, self.splat(-LN2_HIGH), x);
        let r = self.mul_add(n, self.splat(-LN2_LOW), r);
        let mut p = self.splat(1.0 / 5040.0);
        for term in TERMS {
            p = self.mul_add(p, r, self.splat(term));
        }
        self.mul(self.mul_add(p, r, self.splat(1.0)), self.pow2(n))
    }
}

/// Code to be compiled for each instruction set.
pub(crate) trait Kernel {
    type Out;
    /// Must be `#[inline(always)]`: its code takes the instruction set of the function that it is inlined into.
    fn run<S: Simd>(self, simd: S) -> Self::Out;
}

/// The instruction set that the kernels of a model use.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Isa {
    Scalar,
    /// With products of whole matrices of bytes.
    #[cfg(test)]
    ScalarMatrices,
    #[cfg(target_arch = "x86_64")]
    Avx2(x86::Avx2),
    /// AVX-512 with VNNI for products of bytes and of half precision, and AMX, where there is that, for bytes of many rows; for f32, AVX2.
    #[cfg(target_arch = "x86_64")]
    Vnni(Vnni),
}

impl Isa {
    /// The best that this processor has.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let vnni = Vnni::detect().map(Self::Vnni);
            if let Some(isa) = vnni.or_else(|| x86::Avx2::detect().map(Self::Avx2)) {
                return isa;
            }
        }
        Self::Scalar
    }

    /// Every one that this processor has, for tests.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![Self::Scalar, Self::ScalarMatrices];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(x86::Avx2::detect().map(Self::Avx2));
            let vnni = Vnni::detect();
            all.extend(vnni.and_then(Vnni::without_amx).map(Self::Vnni));
            all.extend(vnni.map(Self::Vnni));
        }
        all
    }

    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Out {
        match self {
            Self::Scalar => Scalar.call(kernel),
            #[cfg(test)]
            Self::ScalarMatrices => Scalar.call(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(avx2) => avx2.call(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Vnni(vnni) => vnni.avx2().call(kernel),
        }
    }

    /// The same for products of bytes.
    #[inline]
    pub(crate) fn run_rows<K: RowsKernel>(self, kernel: K) {
        match self {
            Self::Scalar => quant::Scalar { matrices: false }.call_rows(kernel),
            #[cfg(test)]
            Self::ScalarMatrices => quant::Scalar { matrices: true }.call_rows(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(avx2) => avx2.call_rows(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Vnni(vnni) => vnni.call_rows(kernel),
        }
    }
}

/// Plain Rust: for every processor, and what the others are compared with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scalar;

impl Simd for Scalar {
    type V = [f32; LANES];

    #[inline(never)]
    fn call<K: Kernel>(self, kernel: K) -> K::Out {
        kernel.run(self)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::V {
        *from
    }
    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Self::V {
        from.map(f16::to_f32)
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::V {
        from.map(bf16::to_f32)
    }
    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f32; LANES]) {
        *to = v;
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Not f32::mul_add: without the instruction that is a call per number.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
    #[inline(always)]
    fn prefetch_near(self, _: *const u8) {}
    #[inline(always)]
    fn round(self, v: Self::V) -> Self::V {
        v.map(f32::round_ties_even)
    }
    #[inline(always)]
    fn transpose(self, rows: [Self::V; LANES]) -> [Self::V; LANES] {
        std::array::from_fn(|i| std::array::from_fn(|j| rows[j][i]))
    }
    #[inline(always)]
    fn pow2(self, n: Self::V) -> Self::V {
        n.map(|n| f32::from_bits(((n as i32 + 127) as u32) << 23))
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)] // intrinsics
pub(crate) mod x86 {
    use std::arch::x86_64::*;

    use super::{Kernel, LANES, Simd, bf16, f16};

    /// What the processor says of itself.
    #[allow(
        unused_unsafe,
        reason = "safe only since newer versions of Rust than the oldest that builds this"
    )]
    pub(crate) fn cpuid(leaf: u32, of_leaf: u32) -> CpuidResult {
        // SAFETY: every x86-64 processor has the instruction.
        unsafe { __cpuid_count(leaf, of_leaf) }
    }

    /// The proof that the processor has AVX2, FMA and F16C.
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Avx2(());

    impl Avx2 {
        pub(crate) fn detect() -> Option<Self> {
            (is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c"))
            .then_some(Self(()))
        }
    }

    // SAFETY, for every block below: `self` exists, so the processor has AVX2, FMA and F16C; loads and stores are unaligned
    // ones, and go through references to arrays of as many bytes as the instruction moves.
    impl Simd for Avx2 {
        type V = __m256;

        #[inline]
        fn call<K: Kernel>(self, kernel: K) -> K::Out {
            #[target_feature(enable = "avx2,fma,f16c")]
            #[inline(never)]
            fn compiled<K: Kernel>(avx2: Avx2, kernel: K) -> K::Out {
                kernel.run(avx2)
            }
            // SAFETY: `self` exists, so the processor has the three features.
            unsafe { compiled(self, kernel) }
        }
        #[inline(always)]
        fn splat(self, x: f32) -> Self::V {
            // SAFETY: see above the impl.
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        fn load(self, from: &[f32; LANES]) -> Self::V {
            // SAFETY: see above the impl.
            unsafe { _mm256_loadu_ps(from.as_ptr()) }
        }
        #[inline(always)]
        fn load_f16(self, from: &[f16; LANES]) -> Self::V {
            // SAFETY: see above the impl.
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())) }
        }
        #[inline(always)]
        fn load_bf16(self, from: &[bf16; LANES]) -> Self::V {
            // SAFETY: see above the impl.
            unsafe {
                let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
            }
        }
        #[inline(always)]
        fn store(self, v: Self::V, to: &mut [f32; LANES]) {
            // SAFETY: see above the impl.
            unsafe { _mm256_storeu_ps(to.as_mut_ptr(), v) }
        }
        #[inline(always)]
        fn sum(self, v: Self::V) -> f32 {
            // SAFETY: see above the impl.
            unsafe {
                let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
            }
        }
        #[inline(always)]
        fn sum_four(self, [a, b, c, d]: [Self::V; 4]) -> [f32; 4] {
            #[inline(always)]
            fn halves(v: __m256) -> __m128 {
                // SAFETY: called from below alone, where the processor has AVX.
                unsafe { _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v)) }
            }
            let (a, b, c, d) = (halves(a), halves(b), halves(c), halves(d));
            let mut sums = [0.0; 4];
            // SAFETY: see above the impl.
            unsafe {
                // a0 + a2, b0 + b2, a1 + a3, b1 + b3
                let ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
                let cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
                let all = _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab));
                _mm_storeu_ps(sums.as_mut_ptr(), all);
            }
            sums
        }
        #[inline(always)]
        fn add(self, a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: see above the impl.
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        fn mul(self, a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: see above the impl.
            unsafe { _mm256_mul_ps(a, b) }
        }
        #[inline(always)]
        fn div(self, a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: see above the impl.
            unsafe { _mm256_div_ps(a, b) }
        }
        #[inline(always)]
        fn max(self, a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: see above the impl.
            unsafe { _mm256_max_ps(a, b) }
        }
        #[inline(always)]
        fn min(self, a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: see above the impl.
            unsafe { _mm256_min_ps(a, b) }
        }
        #[inline(always)]
        fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            // SAFETY: see above the impl.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn prefetch(self, line: *const u8) {
            // SAFETY: see above the impl; a prefetch of any address is no access.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) }
        }
        #[inline(always)]
        fn prefetch_near(self, line: *const u8) {
            // SAFETY: see above the impl; a prefetch of any address is no access.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
        }
        #[inline(always)]
        fn round(self, v: Self::V) -> Self::V {
            // SAFETY: see above the impl.
            unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v) }
        }
        #[inline(always)]
        fn transpose(self, [a, b, c, d, e, f, g, h]: [Self::V; LANES]) -> [Self::V; LANES] {
            /// Four rows: columns 0 and 4, 1 and 5, 2 and 6, 3 and 7 of them.
            #[inline(always)]
            fn four(a: __m256, b: __m256, c: __m256, d: __m256) -> [__m256; 4] {
                // SAFETY: called from below alone, where the processor has AVX.
                unsafe {
                    let (ab, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
                    let (cd, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
                    [
                        _mm256_shuffle_ps::<0x44>(ab, cd),
                        _mm256_shuffle_ps::<0xEE>(ab, cd),
                        _mm256_shuffle_ps::<0x44>(ab_high, cd_high),
                        _mm256_shuffle_ps::<0xEE>(ab_high, cd_high),
                    ]
                }
            }
            let (upper, lower) = (four(a, b, c, d), four(e, f, g, h));
            let mut columns = [a; LANES];
            for i in 0..4 {
                // SAFETY: see above the impl.
                unsafe {
                    columns[i] = _mm256_permute2f128_ps::<0x20>(upper[i], lower[i]);
                    columns[i + 4] = _mm256_permute2f128_ps::<0x31>(upper[i], lower[i]);
                }
            }
            columns
        }
        #[inline(always)]
        fn pow2(self, n: Self::V) -> Self::V {
            // SAFETY: see above the impl.
            unsafe {
                let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_everywhere() {
        struct Exp(f32);
        impl Kernel for Exp {
            type Out = f32;
            #[inline(always)]
            fn run<S: Simd>(self, s: S) -> f32 {
                s.to_array(s.exp(s.splat(self.0)))[3]
            }
        }
        for isa in Isa::all() {
            for i in -870..=880 {
                let x = i as f32 / 10.0;
                let (found, expected) = (isa.run(Exp(x)), f64::from(x).exp());
                let error = (f64::from(found) / expected - 1.0).abs();
                assert!(error < 4e-7, "{isa:?}: exp({x}) = {found}, expected {expected}");
            }
            assert_eq!(isa.run(Exp(0.0)), 1.0);
            assert!(isa.run(Exp(f32::NEG_INFINITY)) < 1e-37);
            assert!(isa.run(Exp(f32::NAN)).is_nan(), "{isa:?}: NaN is not hidden");
        }
    }
}
