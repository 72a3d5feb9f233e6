//! What can be wrong with sampling options, or with the logits to sample from.

use llama_backend::TokenId;
use thiserror::Error;

/// Why no token can be sampled, or no logprob told.
///
/// In most of these cases the reference's `torch.multinomial` fails on NaN; here each says what was wrong.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// The temperature is NaN or infinite. (Zero and below choose the likeliest token.)
    #[error("temperature {0} is not a finite number")]
    Temperature(f64),
    /// `top_p` is NaN, infinite or negative.
    #[error("top_p {0} is not a finite number of at least 0")]
    TopP(f64),
    /// There are no logits.
    #[error("there are no logits")]
    Empty,
    /// A logit is NaN: the model has computed nonsense.
    #[error("the logit of token {0} is not a number")]
    NanLogit(TokenId),
    /// No token has a probability: the temperature is so small that logits divided by it overflow a float32, or a logit
    /// is infinite already.
    #[error("the greatest logit {logit} divided by temperature {temperature} is no finite float32")]
    Overflow {
        /// The greatest logit.
        logit: f32,
        /// What it was divided by; 1 for logprobs.
        temperature: f64,
    },
    /// A logprob is asked of a token that does not exist.
    #[error("token id {id} is out of range: there are {vocab_size} logits")]
    IdOutOfRange {
        /// The token.
        id: TokenId,
        /// How many logits there are.
        vocab_size: usize,
    },
}

impl SamplingError {
    /// Whether the options are at fault, rather than the logits.
    ///
    /// ```
    /// use llama_core::sampler::SamplingOptions;
    ///
    /// let error = SamplingOptions { temperature: f64::NAN, ..Default::default() }.validate().unwrap_err();
    /// assert!(error.is_invalid_option());
    /// ```
    pub fn is_invalid_option(&self) -> bool {
        matches!(self, SamplingError::Temperature(_) | SamplingError::TopP(_))
    }
}
