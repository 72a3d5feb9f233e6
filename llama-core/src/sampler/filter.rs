//! Logits to the tokens that may be drawn: temperature, softmax, top-k, top-p, min-p.
//!
//! The arithmetic is the reference's to the rounding, as far as it shows: probabilities are float32, their cumulative
//! sum is kept in float64 and rounded to float32 at each token (torch's `cumsum` on a CPU), and the options are rounded
//! to float32 before they meet a tensor. So the borderline cases fall on the same side: `top_p` 1 drops a tail where the
//! rounded sum passes 1.
//!
//! Shapes: `logits: [vocab_size]`, `probs: [vocab_size]`.

use std::cmp::Ordering;

use llama_backend::TokenId;

use super::{SamplingError, SamplingOptions};

/// The first greatest logit.
///
/// # Errors
///
/// No logits, or one that is NaN.
///
/// ```
/// use llama_core::sampler::argmax;
///
/// assert_eq!(argmax(&[0.5, 2.0, 2.0])?.0, 1);
/// assert!(argmax(&[0.5, f32::NAN]).is_err());
/// # Ok::<(), llama_core::sampler::SamplingError>(())
/// ```
pub fn argmax(logits: &[f32]) -> Result<TokenId, SamplingError> {
    let mut best = (0, *logits.first().ok_or(SamplingError::Empty)?);
    for (id, &logit) in (0..).zip(logits) {
        if logit.is_nan() {
            return Err(SamplingError::NanLogit(TokenId(id)));
        }
        if logit > best.1 {
            best = (id, logit);
        }
    }
    Ok(TokenId(best.0))
}

/// Turns logits into probabilities: `softmax(logits / temperature)`, the temperature above 0.
///
/// # Errors
///
/// No logits, one that is NaN, or a greatest one that divided by the temperature is infinite. What stands in `logits`
/// then is of no use. (That the others fall to minus infinity is no error: their probability is 0.)
///
/// ```
/// let mut probs = [1.0, 1.0 - f32::ln(3.0) * 0.5];
/// llama_core::sampler::softmax(&mut probs, 0.5)?;
/// assert!((probs[0] - 0.75).abs() < 1e-6);
/// # Ok::<(), llama_core::sampler::SamplingError>(())
/// ```
pub fn softmax(logits: &mut [f32], temperature: f64) -> Result<(), SamplingError> {
    let greatest = logits[argmax(logits)?.0 as usize]; // argmax gives an index of logits
    let divisor = temperature as f32;
    let scaled = greatest / divisor;
    if !scaled.is_finite() {
        return Err(SamplingError::Overflow { logit: greatest, temperature });
    }
    let mut sum = 0.0f64;
    for logit in logits.iter_mut() {
        *logit = (*logit / divisor - scaled).exp();
        sum += f64::from(*logit);
    }
    let sum = sum as f32;
    logits.iter_mut().for_each(|prob| *prob /= sum);
    Ok(())
}

/// A token that top-p keeps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kept {
    /// The token.
    pub id: TokenId,
    /// Its probability, of those kept.
    pub prob: f32,
}

/// The likeliest tokens whose probabilities together reach `top_p`, likeliest first, equal ones by id; renormalised.
///
/// The reference's `sample_top_p`: a token is dropped if those before it sum to *more* than `top_p`. So the one that
/// crosses `top_p` is kept, and the one behind it too if the sum is exactly `top_p`; 0 keeps one token.
///
/// ```
/// use llama_core::sampler::top_p;
///
/// let ids: Vec<u32> = top_p(&[0.125, 0.5, 0.25, 0.125], 0.6).iter().map(|kept| kept.id.0).collect();
/// assert_eq!(ids, [1, 2]);
/// assert_eq!(top_p(&[0.25; 4], 0.5).len(), 3); // the sum before the third is 0.5, which is not more
/// assert_eq!(top_p(&[0.25; 4], 0.0).len(), 1);
/// ```
pub fn top_p(probs: &[f32], top_p: f64) -> Vec<Kept> {
    let mut kept = all(probs).collect();
    keep_top_p(top_p, &mut kept);
    kept
}

fn all(probs: &[f32]) -> impl Iterator<Item = Kept> {
    (0..).zip(probs).map(|(id, &prob)| Kept { id: TokenId(id), prob })
}

/// Likeliest first, equal ones by id: a total order.
fn likelier(a: &Kept, b: &Kept) -> Ordering {
    b.prob.total_cmp(&a.prob).then(a.id.0.cmp(&b.id.0))
}

/// The tokens that the options keep, likeliest first, renormalised, into a buffer that is used again: `top_k`, then `top_p`, then `min_p`, each of
/// what the one before has left.
pub(super) fn keep(probs: &[f32], options: &SamplingOptions, kept: &mut Vec<Kept>) {
    kept.clear();
    kept.extend(all(probs));
    if let Some(top_k) = options.top_k.filter(|&top_k| top_k < kept.len()) {
        kept.select_nth_unstable_by(top_k, likelier);
        kept.truncate(top_k);
        renormalise(kept);
    }
    keep_top_p(options.top_p, kept);
    // Sorted by now, and never empty.
    let least = options.min_p as f32 * kept.first().map_or(0.0, |likeliest| likeliest.prob);
    let n_kept = kept.partition_point(|token| token.prob >= least);
    if n_kept < kept.len() {
        kept.truncate(n_kept);
        renormalise(kept);
    }
}

fn renormalise(kept: &mut [Kept]) {
    let total = kept.iter().map(|token| f64::from(token.prob)).sum::<f64>() as f32;
    kept.iter_mut().for_each(|token| token.prob /= total);
}

/// How many tokens are sorted at first; each further step takes eight times as many.
const FIRST_STEP: usize = 64;

/// [`top_p`], of the tokens in a buffer.
///
/// Sorting all of a vocabulary for the few tokens that are kept would take most of the time, so the likeliest are
/// selected in steps until the sum is reached. The order is total (ties by id), hence the same as of a full sort.
fn keep_top_p(top_p: f64, kept: &mut Vec<Kept>) {
    let top_p = top_p as f32;
    // From 1 on nearly all are kept: sort at once.
    let mut step = if top_p < 1.0 { FIRST_STEP } else { kept.len() };
    let (mut sorted, mut sum) = (0, 0.0f64);
    let n_kept = 'reached: loop {
        let rest = &mut kept[sorted..];
        if rest.is_empty() {
            break sorted;
        }
        let len = step.min(rest.len());
        if len < rest.len() {
            rest.select_nth_unstable_by(len, likelier);
        }
        rest[..len].sort_unstable_by(likelier);
        for (i, token) in rest[..len].iter().enumerate() {
            sum += f64::from(token.prob);
            if sum as f32 - token.prob > top_p {
                break 'reached sorted + i;
            }
        }
        sorted += len;
        step = step.saturating_mul(8);
    };
    kept.truncate(n_kept);
    renormalise(kept);
}
