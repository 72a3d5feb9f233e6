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
    /// `top_k` is 0, which keeps nothing.
    #[error("top_k is 0, expected at least 1")]
    TopK,
    /// `min_p` is NaN or not between 0 and 1.
    #[error("min_p {0} is not between 0 and 1")]
    MinP(f64),
    /// The repetition penalty is NaN, infinite, 0 or negative, or too near to 0 for a float32.
    #[error("repetition_penalty {0} is not a finite number above 0")]
    RepetitionPenalty(f64),
    /// A penalty is NaN, infinite or too great for a float32.
    #[error("{option} {penalty} is not a finite number")]
    Penalty {
        /// The option's name.
        option: &'static str,
        /// Its value.
        penalty: f64,
    },
    /// A bias is NaN or infinite. (-100 bans a token well enough.)
    #[error("the bias {bias} of token {id} is not a finite number")]
    LogitBias {
        /// The token.
        id: TokenId,
        /// Its bias.
        bias: f32,
    },
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
    /// A logprob is asked of a token that does not exist, or a bias given to one.
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
        use SamplingError::{LogitBias, MinP, Penalty, RepetitionPenalty, Temperature, TopK, TopP};
        matches!(
            self,
            Temperature(_)
                | TopP(_)
                | TopK
                | MinP(_)
                | RepetitionPenalty(_)
                | Penalty { .. }
                | LogitBias { .. }
        )
    }
}
