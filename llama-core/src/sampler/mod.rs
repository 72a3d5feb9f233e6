//! From logits to a token: the reference's rule, drawn from a stream of one's own.
//!
//! The decision: the reference draws a batch from one random stream, so that an answer depends on its neighbours. Here
//! every row has a stream, told by (seed, row): the same request gives the same answer alone, in a batch and in any
//! order. Sampling knows no tensors; a row of logits is a slice.

mod error;
mod filter;
mod logprob;

use llama_backend::TokenId;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};
use serde::{Deserialize, Serialize};

pub use error::SamplingError;
pub use filter::{Kept, argmax, softmax, top_p};
pub use logprob::{log_softmax_at, log_sum_exp};

/// How the next token is chosen. The default is the reference's: 0.6 and 0.9.
///
/// ```
/// use llama_core::sampler::SamplingOptions;
///
/// let options = SamplingOptions { temperature: 0.0, ..Default::default() };
/// assert!(options.is_greedy() && options.top_p == 0.9);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplingOptions {
    /// Divides the logits: below 1 the likely gets likelier. At 0 and below the likeliest token is taken, always.
    pub temperature: f64,
    /// Draw among the likeliest tokens that have this much of the probability together. From 1 on (nearly) all.
    pub top_p: f64,
}

impl Default for SamplingOptions {
    fn default() -> SamplingOptions {
        SamplingOptions { temperature: 0.6, top_p: 0.9 }
    }
}

impl SamplingOptions {
    /// Checks the options.
    ///
    /// # Errors
    ///
    /// One of them is NaN or infinite, or `top_p` is negative: also where the temperature makes `top_p` idle.
    ///
    /// ```
    /// use llama_core::sampler::SamplingOptions;
    ///
    /// assert!(SamplingOptions { temperature: -1.0, top_p: 1.5 }.validate().is_ok());
    /// assert!(SamplingOptions { temperature: 1.0, top_p: -0.1 }.validate().is_err());
    /// ```
    pub fn validate(&self) -> Result<(), SamplingError> {
        if !self.temperature.is_finite() {
            return Err(SamplingError::Temperature(self.temperature));
        }
        if !(self.top_p.is_finite() && self.top_p >= 0.0) {
            return Err(SamplingError::TopP(self.top_p));
        }
        Ok(())
    }

    /// Whether the likeliest token is taken, and nothing drawn.
    ///
    /// ```
    /// assert!(!llama_core::sampler::SamplingOptions::default().is_greedy());
    /// ```
    pub fn is_greedy(&self) -> bool {
        self.temperature <= 0.0
    }
}

/// Chooses the tokens of one row.
///
/// ```
/// use llama_core::sampler::{Sampler, SamplingOptions};
///
/// let logits = [1.0, 2.0, 3.0];
/// let mut one = Sampler::new(SamplingOptions::default(), 42, 0)?;
/// let mut other = Sampler::new(SamplingOptions::default(), 42, 0)?;
/// assert_eq!(one.sample(&logits)?, other.sample(&logits)?);
/// # Ok::<(), llama_core::sampler::SamplingError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplingOptions,
    rng: ChaCha8Rng,
    probs: Vec<f32>,
    kept: Vec<Kept>,
}

impl Sampler {
    /// A sampler for that row of what is generated with that seed.
    ///
    /// # Errors
    ///
    /// The options are not valid ([`SamplingOptions::validate`]).
    ///
    /// ```
    /// use llama_core::sampler::{Sampler, SamplingError, SamplingOptions};
    ///
    /// let options = SamplingOptions { top_p: -1.0, ..Default::default() };
    /// assert_eq!(Sampler::new(options, 0, 0).unwrap_err(), SamplingError::TopP(-1.0));
    /// ```
    pub fn new(options: SamplingOptions, seed: u64, row: u64) -> Result<Sampler, SamplingError> {
        options.validate()?;
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_stream(row);
        Ok(Sampler { options, rng, probs: Vec::new(), kept: Vec::new() })
    }

    /// The options.
    ///
    /// ```
    /// use llama_core::sampler::{Sampler, SamplingOptions};
    ///
    /// let sampler = Sampler::new(SamplingOptions::default(), 0, 0)?;
    /// assert_eq!(sampler.options().temperature, 0.6);
    /// # Ok::<(), llama_core::sampler::SamplingError>(())
    /// ```
    pub fn options(&self) -> &SamplingOptions {
        &self.options
    }

    /// The next token: the likeliest, or drawn by temperature and top-p. A draw takes one number of the stream,
    /// whatever the logits; a greedy choice takes none.
    ///
    /// # Shapes
    ///
    /// `logits: [vocab_size]`
    ///
    /// # Errors
    ///
    /// No logits, one that is NaN, or, when drawing, a greatest one that divided by the temperature overflows.
    ///
    /// ```
    /// use llama_core::sampler::{Sampler, SamplingOptions};
    ///
    /// let mut greedy = Sampler::new(SamplingOptions { temperature: 0.0, top_p: 0.9 }, 0, 0)?;
    /// assert_eq!(greedy.sample(&[0.1, 0.9, 0.9])?.0, 1);
    /// # Ok::<(), llama_core::sampler::SamplingError>(())
    /// ```
    pub fn sample(&mut self, logits: &[f32]) -> Result<TokenId, SamplingError> {
        if self.options.is_greedy() {
            return argmax(logits);
        }
        // 53 random bits: every float64 of that spacing in [0, 1).
        let uniform = (self.rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64);
        self.probs.clear();
        self.probs.extend_from_slice(logits);
        softmax(&mut self.probs, self.options.temperature)?;
        filter::top_p_into(&self.probs, self.options.top_p, &mut self.kept);
        draw(&self.kept, uniform).ok_or(SamplingError::Empty)
    }
}

/// The token at which the probabilities pass that share of their sum.
fn draw(kept: &[Kept], uniform: f64) -> Option<TokenId> {
    let total: f64 = kept.iter().map(|token| f64::from(token.prob)).sum();
    let mut left = uniform * total;
    let mut last = None;
    for token in kept.iter().filter(|token| token.prob > 0.0) {
        last = Some(token.id);
        left -= f64::from(token.prob);
        if left < 0.0 {
            break;
        }
    }
    last // where rounding has left a grain over, the last one
}
