//! The marks: what the candle backend must reach, as ratios within one run.

use std::fmt;
use std::time::{Duration, Instant};

use llama_backend_candle::CandleBackend;

use crate::Error;
use crate::bandwidth::Bandwidth;
use crate::workload::{Forward, Products, decode_bytes, weights};

/// Decodes per round: one alone is short beside a prefill.
const DECODES: usize = 8;

/// What was measured, round by round.
#[derive(Debug, Default)]
pub struct Marks {
    /// The threads of everything.
    pub n_threads: usize,
    /// A prefill of 512 tokens.
    pub prefill: Vec<Duration>,
    /// Its matrix products through candle.
    pub products: Vec<Duration>,
    /// Reading 1 GiB.
    pub read: Vec<Duration>,
    /// One token.
    pub decode: Vec<Duration>,
    /// The bytes of that gibibyte.
    pub read_bytes: usize,
}

impl Marks {
    /// Measures everything in turns, `rounds` times after one that is not counted.
    ///
    /// # Errors
    ///
    /// What a workload says.
    pub fn measure(rounds: usize) -> Result<Self, Error> {
        let n_threads = std::thread::available_parallelism()?.get();
        let weights = weights();
        let products = Products::new(&weights)?;
        let mut forward = Forward::new(&CandleBackend::default(), weights, n_threads)?;
        let bandwidth = Bandwidth::new(n_threads)?;
        let mut marks = Self { n_threads, read_bytes: bandwidth.bytes(), ..Self::default() };
        for round in 0..=rounds {
            let products = time(|| products.run())?;
            let prefill = time(|| forward.prefill())?;
            let read = bandwidth.read();
            forward.decode()?; // brings the weights' pages and the slot into place
            let decode = time(|| (0..DECODES).try_for_each(|_| forward.decode()))? / DECODES as u32;
            if round > 0 {
                marks.products.push(products);
                marks.prefill.push(prefill);
                marks.read.push(read);
                marks.decode.push(decode);
            }
        }
        Ok(marks)
    }

    /// Prefill's time over that of its matrix products, by their medians. At most 1.4 is wanted.
    #[must_use]
    pub fn prefill_ratio(&self) -> f64 {
        median(&self.prefill) / median(&self.products)
    }

    /// The bytes per second that memory gives: the best of all rounds.
    #[must_use]
    pub fn bandwidth(&self) -> f64 {
        let best = self.read.iter().min().copied().unwrap_or_default();
        self.read_bytes as f64 / best.as_secs_f64()
    }

    /// The share of it at which a decode, by the median, reads weights. At least 0.6 is wanted.
    #[must_use]
    pub fn decode_share(&self) -> f64 {
        decode_bytes() as f64 / median(&self.decode) / self.bandwidth()
    }
}

impl fmt::Display for Marks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |times: &[Duration]| median(times) * 1e3;
        writeln!(f, "{} threads, medians of {} rounds", self.n_threads, self.prefill.len())?;
        writeln!(
            f,
            "prefill 512: {:.1} ms; its products by candle's matmul: {:.1} ms; ratio {:.3} (at most 1.4)",
            ms(&self.prefill),
            ms(&self.products),
            self.prefill_ratio()
        )?;
        write!(
            f,
            "decode: {:.2} ms; read bandwidth {:.1} GB/s; share {:.3} (at least 0.6)",
            ms(&self.decode),
            self.bandwidth() / 1e9,
            self.decode_share()
        )
    }
}

pub(crate) fn time(work: impl FnOnce() -> Result<(), Error>) -> Result<Duration, Error> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

/// In seconds.
pub(crate) fn median(times: &[Duration]) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    let middle = times.len() / 2;
    times.get(middle).copied().unwrap_or_default().as_secs_f64()
}
