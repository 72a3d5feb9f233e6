//! From logits to a token: the reference's rule, drawn from a stream of one's own.
//!
//! The decision: the reference draws a batch from one random stream, so that an answer depends on its neighbours. Here
//! every row has a stream, told by (seed, row): the same request gives the same answer alone, in a batch and in any
//! order. Sampling knows no tensors; a row of logits is a slice.

mod error;
mod filter;
mod logprob;
mod penalty;

use std::collections::BTreeMap;

use llama_backend::TokenId;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};
use serde::{Deserialize, Serialize};

pub use error::SamplingError;
pub use filter::{Kept, argmax, softmax, top_p};
pub use logprob::{Alternative, log_softmax_at, log_sum_exp, top_logprobs};
use penalty::Seen;

/// How the next token is chosen. The default is the reference's: 0.6 and 0.9, and nothing else.
///
/// What is set takes effect in this order, that of Hugging Face's processors and warpers: on the model's logits the repetition penalty, then
/// the frequency and presence penalties and the bias; then temperature, `top_k`, `top_p`, `min_p`. Defaults leave all numbers alone.
///
/// ```
/// use llama_core::sampler::SamplingOptions;
///
/// let options = SamplingOptions { temperature: 0.0, ..Default::default() };
/// assert!(options.is_greedy() && options.top_p == 0.9);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplingOptions {
    /// Divides the logits: below 1 the likely gets likelier. At 0 and below the likeliest token is taken, always.
    pub temperature: f64,
    /// Draw among the likeliest tokens that have this much of the probability together. From 1 on (nearly) all.
    pub top_p: f64,
    /// Draw among so many of the likeliest tokens; `None`: all. (Fan et al., *Hierarchical Neural Story Generation*, 2018.)
    pub top_k: Option<usize>,
    /// Draw among tokens at least so probable, times the likeliest's probability; 0: all. (Nguyen et al., *Turning Up the Heat: Min-p
    /// Sampling for Creative and Coherent LLM Outputs*, 2024.)
    pub min_p: f64,
    /// Divides the logits above 0, and multiplies those below, of tokens in the prompt or the answer; 1: none. (Keskar et al., *CTRL*, 2019,
    /// over the whole text, as Hugging Face does it.)
    pub repetition_penalty: f64,
    /// Taken from a token's logit for each time that it stands in the answer; 0: none. (OpenAI's API.)
    pub frequency_penalty: f64,
    /// Taken from a token's logit once, if it stands in the answer; 0: none. (OpenAI's API.)
    pub presence_penalty: f64,
    /// Added to tokens' logits: -100 bans a token, 100 all others. (OpenAI's API.)
    #[serde(with = "crate::options::bias")]
    pub logit_bias: BTreeMap<TokenId, f32>,
}

impl Default for SamplingOptions {
    fn default() -> SamplingOptions {
        SamplingOptions {
            temperature: 0.6,
            top_p: 0.9,
            top_k: None,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: BTreeMap::new(),
        }
    }
}

impl SamplingOptions {
    /// Checks the options.
    ///
    /// # Errors
    ///
    /// One of them is NaN, infinite or out of its range: also where another one makes it idle.
    ///
    /// ```
    /// use llama_core::sampler::SamplingOptions;
    ///
    /// assert!(SamplingOptions { temperature: -1.0, top_p: 1.5, ..Default::default() }.validate().is_ok());
    /// assert!(SamplingOptions { temperature: 1.0, top_p: -0.1, ..Default::default() }.validate().is_err());
    /// assert!(SamplingOptions { top_k: Some(0), ..Default::default() }.validate().is_err());
    /// ```
    pub fn validate(&self) -> Result<(), SamplingError> {
        if !self.temperature.is_finite() {
            return Err(SamplingError::Temperature(self.temperature));
        }
        if !(self.top_p.is_finite() && self.top_p >= 0.0) {
            return Err(SamplingError::TopP(self.top_p));
        }
        if self.top_k == Some(0) {
            return Err(SamplingError::TopK);
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return Err(SamplingError::MinP(self.min_p));
        }
        // As a float32, which it is where it meets the logits: so that none becomes infinite there.
        let repetition = self.repetition_penalty as f32;
        if !(repetition.is_normal() && repetition > 0.0) {
            return Err(SamplingError::RepetitionPenalty(self.repetition_penalty));
        }
        let penalties =
            [("frequency_penalty", self.frequency_penalty), ("presence_penalty", self.presence_penalty)];
        for (option, penalty) in penalties {
            if !(penalty as f32).is_finite() {
                return Err(SamplingError::Penalty { option, penalty });
            }
        }
        match self.logit_bias.iter().find(|(_, bias)| !bias.is_finite()) {
            Some((&id, &bias)) => Err(SamplingError::LogitBias { id, bias }),
            None => Ok(()),
        }
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
    seen: Seen,
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
        let seen = Seen::new(&options);
        Ok(Sampler { options, rng, seen, probs: Vec::new(), kept: Vec::new() })
    }

    /// Tells what stands before the answer, for the repetition penalty.
    ///
    /// ```
    /// use llama_core::sampler::{Sampler, SamplingOptions};
    ///
    /// let options = SamplingOptions { temperature: 0.0, repetition_penalty: 2.0, ..Default::default() };
    /// let mut sampler = Sampler::new(options, 0, 0)?.with_prompt(&[1.into()]);
    /// assert_eq!(sampler.sample(&[2.0, 3.0])?.0, 0); // 2 against 3 / 2
    /// # Ok::<(), llama_core::sampler::SamplingError>(())
    /// ```
    #[must_use]
    pub fn with_prompt(mut self, prompt: &[TokenId]) -> Sampler {
        self.seen.prompt(prompt);
        self
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

    /// The next token: the likeliest, or drawn. A draw takes one number of the stream, whatever the logits; a greedy choice takes
    /// none. The token counts as said from then on.
    ///
    /// # Shapes
    ///
    /// `logits: [vocab_size]`
    ///
    /// # Errors
    ///
    /// No logits, one that is NaN, a bias for a token that is not among them, or, when drawing, a greatest one that divided by the
    /// temperature overflows.
    ///
    /// ```
    /// use llama_core::sampler::{Sampler, SamplingOptions};
    ///
    /// let options = SamplingOptions { temperature: 0.0, ..Default::default() };
    /// let mut greedy = Sampler::new(options, 0, 0)?;
    /// assert_eq!(greedy.sample(&[0.1, 0.9, 0.9])?.0, 1);
    /// # Ok::<(), llama_core::sampler::SamplingError>(())
    /// ```
    pub fn sample(&mut self, logits: &[f32]) -> Result<TokenId, SamplingError> {
        self.probs.clear();
        self.probs.extend_from_slice(logits);
        self.seen.adjust(&self.options, &mut self.probs)?;
        let id = if self.options.is_greedy() { argmax(&self.probs)? } else { self.draw()? };
        self.seen.answer(id);
        Ok(id)
    }

    /// Draws from the logits in `probs`.
    fn draw(&mut self) -> Result<TokenId, SamplingError> {
        // 53 random bits: every float64 of that spacing in [0, 1).
        let uniform = (self.rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64);
        softmax(&mut self.probs, self.options.temperature)?;
        filter::keep(&self.probs, &self.options, &mut self.kept);
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
