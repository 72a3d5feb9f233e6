//! Logprobs: `log_softmax` of the raw logits.
//!
//! Temperature, penalties and filters do not enter, as in the reference: a logprob says what the model thinks, not how it was sampled.
//! Sums run in float64, so that a vocabulary of any size costs no accuracy.

use llama_backend::TokenId;

use super::{SamplingError, argmax};

/// The logprob of one token.
///
/// # Shapes
///
/// `logits: [vocab_size]`
///
/// # Errors
///
/// No logits, one that is NaN, a greatest one that is infinite, or a token that is not among them.
///
/// ```
/// use llama_core::sampler::log_softmax_at;
///
/// assert_eq!(log_softmax_at(&[3.0, 3.0], 1.into())?, -std::f32::consts::LN_2);
/// # Ok::<(), llama_core::sampler::SamplingError>(())
/// ```
pub fn log_softmax_at(logits: &[f32], id: TokenId) -> Result<f32, SamplingError> {
    let out_of_range = SamplingError::IdOutOfRange { id, vocab_size: logits.len() };
    let logit = *logits.get(id.0 as usize).ok_or(out_of_range)?;
    Ok((f64::from(logit) - log_sum_exp(logits)?) as f32)
}

/// `ln Σ exp(logit)`: what to take from each logit of a row for its logprob.
///
/// # Shapes
///
/// `logits: [vocab_size]`
///
/// # Errors
///
/// No logits, one that is NaN, or a greatest one that is infinite.
///
/// ```
/// assert_eq!(llama_core::sampler::log_sum_exp(&[0.0, 0.0])?, std::f64::consts::LN_2);
/// # Ok::<(), llama_core::sampler::SamplingError>(())
/// ```
pub fn log_sum_exp(logits: &[f32]) -> Result<f64, SamplingError> {
    let greatest = logits[argmax(logits)?.0 as usize]; // argmax gives an index of logits
    if !greatest.is_finite() {
        return Err(SamplingError::Overflow { logit: greatest, temperature: 1.0 });
    }
    let greatest = f64::from(greatest);
    Ok(greatest + logits.iter().map(|&logit| (f64::from(logit) - greatest).exp()).sum::<f64>().ln())
}

/// One of the likeliest tokens at a place, and its logprob.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alternative {
    /// The token.
    pub id: TokenId,
    /// Its logprob.
    pub logprob: f32,
}

/// The `n` likeliest tokens, likeliest first, equal ones by id; all of them where there are fewer.
///
/// # Shapes
///
/// `logits: [vocab_size]`
///
/// # Errors
///
/// No logits, one that is NaN, or a greatest one that is infinite.
///
/// ```
/// let best = llama_core::sampler::top_logprobs(&[0.0, 2.0, 1.0, 2.0], 2)?;
/// assert_eq!(best.iter().map(|token| token.id.0).collect::<Vec<_>>(), [1, 3]);
/// # Ok::<(), llama_core::sampler::SamplingError>(())
/// ```
pub fn top_logprobs(logits: &[f32], n: usize) -> Result<Vec<Alternative>, SamplingError> {
    let sum = log_sum_exp(logits)?;
    let mut ids: Vec<u32> = (0..).take(logits.len()).collect();
    let likelier = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if n < ids.len() {
        ids.select_nth_unstable_by(n, likelier);
        ids.truncate(n);
    }
    ids.sort_unstable_by(likelier);
    let alternative =
        |id: u32| Alternative { id: TokenId(id), logprob: (f64::from(logits[id as usize]) - sum) as f32 };
    Ok(ids.into_iter().map(alternative).collect())
}
