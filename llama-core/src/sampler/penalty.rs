//! What was said already, and what that and the caller's bias do to the logits.
//!
//! Only the tokens that were seen or biased are touched: the cost is that of the text's length, not the vocabulary's.

use std::collections::BTreeMap;

use llama_backend::TokenId;

use super::{SamplingError, SamplingOptions};

/// The tokens of prompt and answer, as far as a penalty asks for them.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// How often each stands in the answer; 0 for those of the prompt alone.
    counts: BTreeMap<TokenId, u32>,
    repetition: bool,
    others: bool,
}

impl Seen {
    pub(super) fn new(options: &SamplingOptions) -> Self {
        Self {
            counts: BTreeMap::new(),
            repetition: options.repetition_penalty != 1.0,
            others: options.frequency_penalty != 0.0 || options.presence_penalty != 0.0,
        }
    }

    pub(super) fn prompt(&mut self, prompt: &[TokenId]) {
        if self.repetition {
            for &id in prompt {
                self.counts.entry(id).or_default();
            }
        }
    }

    pub(super) fn answer(&mut self, id: TokenId) {
        if self.repetition || self.others {
            *self.counts.entry(id).or_default() += 1;
        }
    }

    /// `logits: [vocab_size]`
    pub(super) fn adjust(&self, options: &SamplingOptions, logits: &mut [f32]) -> Result<(), SamplingError> {
        for (&id, &count) in &self.counts {
            let logit = at(logits, id)?;
            if self.repetition {
                let penalty = options.repetition_penalty as f32;
                *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
            }
            if self.others && count > 0 {
                let penalty = options.presence_penalty + f64::from(count) * options.frequency_penalty;
                *logit -= penalty as f32;
            }
        }
        for (&id, &bias) in &options.logit_bias {
            *at(logits, id)? += bias;
        }
        Ok(())
    }
}

fn at(logits: &mut [f32], id: TokenId) -> Result<&mut f32, SamplingError> {
    let vocab_size = logits.len();
    logits.get_mut(id.0 as usize).ok_or(SamplingError::IdOutOfRange { id, vocab_size })
}
