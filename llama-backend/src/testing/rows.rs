//! What tests of sums ask: whether a row's logits depend on its neighbours.

use crate::{BackendError, Batch, Logits, Model, Run, Slot, TokenId, Want};

/// The logits of the next token of so many prompts, each in a slot of its own: in one batch, and each alone.
///
/// # Errors
///
/// As [`Model::forward`] and [`Model::truncate`].
pub fn together_and_alone(model: &mut dyn Model, n: usize) -> Result<[Vec<f32>; 2], BackendError> {
    const PROMPT: usize = 3;
    let vocab_size = model.config().vocab_size;
    let token = |slot: usize, i: usize| TokenId(((slot * 31 + i * 7) % vocab_size) as u32);
    let tokens: Vec<Vec<TokenId>> =
        (0..n).map(|slot| (0..=PROMPT).map(|i| token(slot, i)).collect()).collect();
    let next = |slot: usize| Run {
        slot: Slot(slot),
        start_pos: PROMPT,
        tokens: &tokens[slot][PROMPT..],
        want: Want::Last,
    };
    let mut logits = Logits::new();
    for (slot, tokens) in tokens.iter().enumerate() {
        let run = Run { slot: Slot(slot), start_pos: 0, tokens: &tokens[..PROMPT], want: Want::None };
        model.forward(&Batch::new(&[run]), &mut logits)?;
    }
    let runs: Vec<Run<'_>> = (0..n).map(next).collect();
    model.forward(&Batch::new(&runs), &mut logits)?;
    let together = logits.as_slice().to_vec();
    let mut alone = Vec::new();
    for slot in 0..n {
        model.truncate(Slot(slot), PROMPT)?;
        model.forward(&Batch::new(&[next(slot)]), &mut logits)?;
        alone.extend_from_slice(logits.as_slice());
    }
    Ok([together, alone])
}
