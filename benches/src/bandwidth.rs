//! How fast this machine reads memory: what decode, which reads every weight once a token, is measured against.
//!
//! The best of several kernels of 32-byte loads over a gibibyte, which no cache holds, in large pages where the system has them: one
//! stream a thread or four, without prefetch, and with prefetch into the nearest cache or past the others, since processors differ in
//! what they like.

use std::io;
use std::time::{Duration, Instant};

use memmap2::MmapMut;

/// A gibibyte and a little, in steps of four 32-byte loads (two lines of cache): streams that are a power of two apart get in each
/// other's way.
const STEPS: usize = ((1 << 30) + (1 << 20)) / STEP + 44;
const STEP: usize = size_of::<Step>();

type Step = [[u64; 4]; 4];

/// Memory to read, and the threads to read it.
#[derive(Debug)]
pub struct Bandwidth {
    memory: MmapMut,
    n_threads: usize,
}

impl Bandwidth {
    /// Takes a gibibyte and touches all of it.
    ///
    /// # Errors
    ///
    /// There is no such memory.
    pub fn new(n_threads: usize) -> io::Result<Self> {
        let mut memory = MmapMut::map_anon(STEPS * STEP)?;
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage); // a kernel without them reads as well, but slower
        for (i, step) in bytemuck::cast_slice_mut::<u8, Step>(&mut memory).iter_mut().enumerate() {
            *step = [[i as u64; 4]; 4];
        }
        Ok(Self { memory, n_threads })
    }

    /// The bytes that a reading reads.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.memory.len()
    }

    /// Reads everything with each kernel; the shortest time.
    #[must_use]
    pub fn read(&self) -> Duration {
        let kernels = [
            sum::<1, 0, true>,
            sum::<1, 32, true>,
            sum::<1, 64, false>,
            sum::<4, 0, true>,
            sum::<4, 16, true>,
            sum::<4, 8, false>,
            sum::<4, 16, false>,
        ];
        let times = kernels.map(|kernel| self.time(kernel));
        times.into_iter().min().unwrap_or_default() // there are seven
    }

    fn time(&self, kernel: fn(&[Step]) -> u64) -> Duration {
        let steps: &[Step] = bytemuck::cast_slice(&self.memory);
        let part = steps.len().div_ceil(self.n_threads);
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in steps.chunks(part) {
                scope.spawn(move || std::hint::black_box(kernel(part)));
            }
        });
        start.elapsed()
    }
}

/// The sum of all words, read in `STREAMS` places at once, and asked for so many steps `AHEAD`, or not at all: into the nearest cache and
/// all others (`KEPT`), or past those that need not keep it.
fn sum<const STREAMS: usize, const AHEAD: usize, const KEPT: bool>(memory: &[Step]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        #[allow(unsafe_code)]
        return unsafe { sum_avx2::<STREAMS, AHEAD, KEPT>(memory) };
    }
    sum_steps::<STREAMS, AHEAD, KEPT>(memory)
}

/// Compiled for 32-byte vectors: an ordinary build has those of 16 bytes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2<const STREAMS: usize, const AHEAD: usize, const KEPT: bool>(memory: &[Step]) -> u64 {
    sum_steps::<STREAMS, AHEAD, KEPT>(memory)
}

#[inline(always)]
fn sum_steps<const STREAMS: usize, const AHEAD: usize, const KEPT: bool>(memory: &[Step]) -> u64 {
    let len = memory.len() / STREAMS;
    let streams: [&[Step]; STREAMS] = std::array::from_fn(|s| &memory[s * len..(s + 1) * len]);
    let mut sums = [[0u64; 4]; 4];
    for i in 0..len {
        for stream in streams {
            if AHEAD > 0 {
                prefetch::<KEPT>(stream, i + AHEAD);
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
fn prefetch<const KEPT: bool>(stream: &[Step], i: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(step) = stream.get(i) {
        use std::arch::x86_64::{_MM_HINT_NTA, _MM_HINT_T0, _mm_prefetch};
        let line: *const i8 = std::ptr::from_ref(step).cast();
        for line in [line, line.wrapping_add(64)] {
            // SAFETY: a prefetch reads nothing.
            #[allow(unsafe_code)]
            unsafe {
                if KEPT {
                    _mm_prefetch::<_MM_HINT_T0>(line);
                } else {
                    _mm_prefetch::<_MM_HINT_NTA>(line);
                }
            }
        }
    }
}
