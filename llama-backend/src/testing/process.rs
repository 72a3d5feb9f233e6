//! What tests of memory ask: a model whose every weight has been used, and what the process takes.

use crate::{BackendError, Batch, Logits, Model, Run, Slot, TokenId, Want};

/// A prompt of 128 tokens in slot 0, then one more: every weight is read. The last row of logits.
///
/// # Errors
///
/// As [`Model::forward`].
pub fn prefill_and_decode(model: &mut dyn Model) -> Result<Vec<f32>, BackendError> {
    let tokens: Vec<TokenId> = (0..129).map(TokenId).collect();
    let (prompt, next) = tokens.split_at(128);
    let mut logits = Logits::new();
    for (start_pos, tokens) in [(0, prompt), (128, next)] {
        let run = Run { slot: Slot(0), start_pos, tokens, want: Want::Last };
        model.forward(&Batch::new(&[run]), &mut logits)?;
    }
    Ok(logits.as_slice().to_vec())
}

/// What Linux says of this process under a name of `/proc/self/status`: bytes (`VmRSS`), or a count (`Threads`). `None` elsewhere.
#[must_use]
pub fn process_status(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?.trim();
    match value.strip_suffix(" kB") {
        Some(kilobytes) => kilobytes.parse::<u64>().ok()?.checked_mul(1024),
        None => value.parse().ok(),
    }
}
