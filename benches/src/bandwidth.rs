//! How fast this machine reads memory: what decode, which reads every weight once a token, is measured against.
//!
//! The best of several kernels of 32-byte loads over 1 GiB, which no cache holds: one stream a thread or four, with and without
//! prefetch, since processors differ in what they like.

use std::time::{Duration, Instant};

/// A gibibyte, in steps of four 32-byte loads (two lines of cache).
const STEPS: usize = (1 << 30) / size_of::<Step>();

type Step = [[u64; 4]; 4];

/// Memory to read, and the threads to read it.
#[derive(Debug)]
pub struct Bandwidth {
    memory: Vec<Step>,
    n_threads: usize,
}

impl Bandwidth {
    /// Takes a gibibyte and touches all of it.
    #[must_use]
    pub fn new(n_threads: usize) -> Self {
        let memory = (0..STEPS as u64).map(|i| [[i; 4]; 4]).collect();
        Self { memory, n_threads }
    }

    /// The bytes that a reading reads.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(self.memory.as_slice())
    }

    /// Reads everything with each kernel; the shortest time.
    #[must_use]
    pub fn read(&self) -> Duration {
        let kernels = [sum::<1, false>, sum::<1, true>, sum::<4, false>, sum::<4, true>];
        let times = kernels.map(|kernel| self.time(kernel));
        times.into_iter().min().unwrap_or_default() // there are four
    }

    fn time(&self, kernel: fn(&[Step]) -> u64) -> Duration {
        let part = self.memory.len().div_ceil(self.n_threads);
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in self.memory.chunks(part) {
                scope.spawn(move || std::hint::black_box(kernel(part)));
            }
        });
        start.elapsed()
    }
}

/// The sum of all words, read in `STREAMS` places at once.
fn sum<const STREAMS: usize, const PREFETCH: bool>(memory: &[Step]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        #[allow(unsafe_code)]
        return unsafe { sum_avx2::<STREAMS, PREFETCH>(memory) };
    }
    sum_steps::<STREAMS, PREFETCH>(memory)
}

/// Compiled for 32-byte vectors: an ordinary build has those of 16 bytes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2<const STREAMS: usize, const PREFETCH: bool>(memory: &[Step]) -> u64 {
    sum_steps::<STREAMS, PREFETCH>(memory)
}

#[inline(always)]
fn sum_steps<const STREAMS: usize, const PREFETCH: bool>(memory: &[Step]) -> u64 {
    const AHEAD: usize = 16; // steps: 2 KiB
    let len = memory.len() / STREAMS;
    let streams: [&[Step]; STREAMS] = std::array::from_fn(|s| &memory[s * len..(s + 1) * len]);
    let mut sums = [[0u64; 4]; 4];
    for i in 0..len {
        for stream in streams {
            if PREFETCH {
                prefetch(stream, i + AHEAD);
            }
            for (sum, words) in sums.iter_mut().zip(&stream[i]) {
                for (sum, word) in sum.iter_mut().zip(words) {
                    *sum = sum.wrapping_add(*word);
                }
            }
        }
    }
    sums.as_flattened().iter().fold(0, |a, &b| a.wrapping_add(b))
}

#[inline(always)]
#[allow(unused_variables)]
fn prefetch(stream: &[Step], i: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(step) = stream.get(i) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let line: *const i8 = std::ptr::from_ref(step).cast();
        // SAFETY: a prefetch reads nothing, and both lines lie within the step.
        #[allow(unsafe_code)]
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(line);
            _mm_prefetch::<_MM_HINT_T0>(line.add(64));
        }
    }
}
