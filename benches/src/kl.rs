//! How far an engine's answers are from those of exact arithmetic: the mean KL divergence of its distributions from the ones that the same
//! weights give, dequantised, with everything else in f32.
//!
//! What quantising the weights costs is the file's matter and the same for every engine; what is left is what an engine adds by
//! rounding activations. Everything is computed a window of the text at a time: a whole one's logits would be gigabytes.

use std::io::{self, Read};
use std::sync::Arc;

use llama_backend::{
    Backend, BackendError, Batch, Capabilities, Computation, DType, LoadParams, Logits, MemoryPlan, Model,
    ModelConfig, ModelSource, Run, Slot, TokenId, Want,
};
use llama_core::checkpoint::Checkpoint;

/// An engine that is handed every matrix in f32, whatever else it takes.
#[derive(Debug, Clone)]
pub struct InF32(pub Arc<dyn Backend>);

impl Backend for InF32 {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { dtypes: &[DType::F32], ..self.0.capabilities() }
    }

    fn computation(&self, asked: Computation) -> Computation {
        self.0.computation(asked)
    }

    fn plan(&self, config: &ModelConfig, dtype: DType, params: &LoadParams) -> MemoryPlan {
        self.0.plan(config, dtype, params)
    }

    fn load(&self, source: ModelSource, params: &LoadParams) -> Result<Box<dyn Model>, BackendError> {
        self.0.load(source, params)
    }
}

/// Loads a checkpoint for windows of so many tokens.
///
/// # Errors
///
/// The backend's.
pub fn load(
    checkpoint: &Checkpoint,
    backend: &dyn Backend,
    window: usize,
    threads: Option<usize>,
) -> Result<Box<dyn Model>, BackendError> {
    let mut params = LoadParams::new(window, 1);
    params.max_batch_tokens = window;
    params.threads = threads;
    backend.load(ModelSource::Weights(checkpoint.weights_for(backend)), &params)
}

/// The logits after each token of a window that nothing comes before.
///
/// # Errors
///
/// The model's.
pub fn logits(model: &mut dyn Model, window: &[TokenId], out: &mut Logits) -> Result<(), BackendError> {
    model.truncate(Slot(0), 0)?;
    let run = Run { slot: Slot(0), start_pos: 0, tokens: window, want: Want::All };
    model.forward(&Batch::new(&[run]), out)
}

/// The next rows of a stream of f32, little-endian, as the peers write logits.
///
/// # Errors
///
/// The stream's; where it ends too early.
pub fn read_logits(
    from: &mut impl Read,
    n_rows: usize,
    vocab_size: usize,
    out: &mut Logits,
) -> io::Result<()> {
    let mut bytes = [0; 4];
    for x in out.reset(n_rows, vocab_size) {
        from.read_exact(&mut bytes)?;
        *x = f32::from_le_bytes(bytes);
    }
    Ok(())
}

/// What was found over all positions so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Divergence {
    sum: f64,
    max: f64,
    n_same: usize,
    n: usize,
    max_difference: f32,
}

impl Divergence {
    /// Adds rows of logits, beside the exact ones.
    ///
    /// # Shapes
    ///
    /// Both `[n, vocab_size]`; of rows without a counterpart nothing is known.
    pub fn add(&mut self, exact: &Logits, found: &Logits) {
        for (exact, found) in exact.rows().zip(found.rows()) {
            let kl = divergence(exact, found);
            self.sum += kl;
            self.max = self.max.max(kl);
            self.n_same += usize::from(largest(exact) == largest(found));
            self.n += 1;
            let differences = exact.iter().zip(found).map(|(a, b)| (a - b).abs());
            self.max_difference = differences.fold(self.max_difference, f32::max);
        }
    }

    /// The positions.
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }

    /// The mean over all positions, in nats.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.sum / self.n as f64
    }

    /// The largest of any position.
    #[must_use]
    pub fn max(&self) -> f64 {
        self.max
    }

    /// The largest difference of any two logits.
    #[must_use]
    pub fn max_difference(&self) -> f32 {
        self.max_difference
    }

    /// The share of positions at which the most probable token is the same.
    #[must_use]
    pub fn same_top(&self) -> f64 {
        self.n_same as f64 / self.n as f64
    }
}

/// `Σ p · (ln p - ln q)`, in f64: the terms are far smaller than what they are made of.
fn divergence(exact: &[f32], found: &[f32]) -> f64 {
    let ln_sum = |logits: &[f32]| {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
        f64::from(max) + sum.ln()
    };
    let (of_exact, of_found) = (ln_sum(exact), ln_sum(found));
    let term = |(&exact, &found): (&f32, &f32)| {
        let (p, q) = (f64::from(exact) - of_exact, f64::from(found) - of_found);
        p.exp() * (p - q)
    };
    exact.iter().zip(found).map(term).sum()
}

fn largest(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[[f32; 3]]) -> Logits {
        let mut logits = Logits::new();
        logits.reset(rows.len(), 3).copy_from_slice(rows.as_flattened());
        logits
    }

    #[test]
    fn alike_is_zero_whatever_is_added_to_all_logits() {
        let mut divergence = Divergence::default();
        divergence.add(&rows(&[[1.0, 2.0, 3.0]]), &rows(&[[11.0, 12.0, 13.0]]));
        assert!(divergence.mean().abs() < 1e-12, "{divergence:?}");
        assert_eq!((divergence.n(), divergence.same_top(), divergence.max_difference()), (1, 1.0, 10.0));
    }

    #[test]
    fn it_is_the_sum_of_the_definition() {
        let ln = |p: [f32; 3]| p.map(f32::ln);
        let mut divergence = Divergence::default();
        divergence
            .add(&rows(&[ln([0.5, 0.25, 0.25]); 2]), &rows(&[ln([0.25, 0.5, 0.25]), ln([0.5, 0.25, 0.25])]));
        let expected = 0.5 * 2_f64.ln() - 0.25 * 2_f64.ln();
        assert!((divergence.max() - expected).abs() < 1e-7, "{divergence:?}");
        assert!((divergence.mean() - expected / 2.0).abs() < 1e-7, "{divergence:?}");
        assert_eq!(divergence.same_top(), 0.5);
    }

    #[test]
    fn logits_are_read_back_and_must_be_all_there() {
        let bytes: Vec<u8> = [1.0_f32, 2.0, 3.0, 4.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let mut out = Logits::new();
        read_logits(&mut &bytes[..], 1, 3, &mut out).unwrap();
        assert_eq!(out, rows(&[[1.0, 2.0, 3.0]]));
        assert!(read_logits(&mut &bytes[..], 2, 3, &mut out).is_err());
    }
}
