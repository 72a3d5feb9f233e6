//! How many multiplications and additions this machine does a second: what prefill, which is little else, is measured against.
//!
//! Chains of fused multiply-adds in registers, more of them than the units have stages, on every thread: nothing is loaded and
//! nothing waits. In the widest vectors that the processor has: of 64 bytes with AVX-512, of 32 with AVX2.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// Independent chains: five stages times two units, and two more for good measure.
const CHAINS: usize = 12;
/// Of a chain of 64-byte vectors; narrower ones do these in two.
const LANES: usize = 16;
/// Steps of a measurement: some tens of milliseconds.
const STEPS: usize = 1 << 22;
const ROUNDS: usize = 5;

/// The most operations a second, a multiplication and an addition counted as two, on so many threads.
#[must_use]
pub fn peak(n_threads: usize) -> f64 {
    let flops = (2 * CHAINS * LANES * STEPS * n_threads) as f64;
    let best = (0..ROUNDS).map(|_| time(n_threads)).min().unwrap_or(Duration::MAX);
    flops / best.as_secs_f64()
}

fn time(n_threads: usize) -> Duration {
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..n_threads {
            scope.spawn(|| black_box(chains(black_box(0.999_9), black_box(1e-4))));
        }
    });
    start.elapsed()
}

/// `x = x · a + b`, over and over.
fn chains(a: f32, b: f32) -> f32 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512F.
            #[allow(unsafe_code)]
            return unsafe { chains_avx512(a, b) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has AVX2 and FMA.
            #[allow(unsafe_code)]
            return unsafe { chains_fma(a, b) };
        }
    }
    let mut x = [[1_f32; LANES]; CHAINS];
    for _ in 0..STEPS {
        for x in x.as_flattened_mut() {
            // Fused where the compiler may take it that the processor can.
            *x = *x * a + b;
        }
    }
    x.as_flattened().iter().sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn chains_avx512(a: f32, b: f32) -> f32 {
    use std::arch::x86_64::{_mm512_add_ps, _mm512_fmadd_ps, _mm512_reduce_add_ps, _mm512_set1_ps};
    let (a, b) = (_mm512_set1_ps(a), _mm512_set1_ps(b));
    let mut x = [_mm512_set1_ps(1.0); CHAINS];
    for _ in 0..STEPS {
        for x in &mut x {
            *x = _mm512_fmadd_ps(*x, a, b);
        }
    }
    _mm512_reduce_add_ps(x.into_iter().fold(b, |sum, x| _mm512_add_ps(sum, x)))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn chains_fma(a: f32, b: f32) -> f32 {
    use std::arch::x86_64::{_mm256_add_ps, _mm256_cvtss_f32, _mm256_fmadd_ps, _mm256_set1_ps};
    let (a, b) = (_mm256_set1_ps(a), _mm256_set1_ps(b));
    let mut x = [_mm256_set1_ps(1.0); CHAINS];
    for _ in 0..2 * STEPS {
        for x in &mut x {
            *x = _mm256_fmadd_ps(*x, a, b);
        }
    }
    _mm256_cvtss_f32(x.into_iter().fold(b, |sum, x| _mm256_add_ps(sum, x)))
}

#[cfg(test)]
mod tests {
    #[test]
    fn there_is_a_peak() {
        let peak = super::peak(1);
        assert!(peak.is_finite() && peak > 1e8, "{peak}");
    }
}
