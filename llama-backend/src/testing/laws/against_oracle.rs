//! Laws that say what the logits are: the oracle's.

use super::super::oracle::Oracle;
use super::super::rig::{small, tokens};
use super::super::suite::{Broken, Checked, Suite};
use crate::{Computation, DType, LoadParams, ModelConfig, Want};

pub(super) fn equals_the_oracle(suite: &Suite<'_>) -> Checked {
    let shapes = if suite.is_fixed() { vec![suite.config()] } else { shapes() };
    shapes.iter().try_for_each(|config| equals(suite, config, DType::F32, Computation::Exact))
}

pub(super) fn every_dtype_equals_the_oracle(suite: &Suite<'_>) -> Checked {
    let dtypes = suite.backend.capabilities().dtypes;
    if dtypes.is_empty() {
        return Err(Broken("the backend declares no dtype".to_owned()));
    }
    if suite.is_fixed() {
        return equals(suite, &suite.config(), DType::F32, Computation::Exact);
    }
    for &dtype in dtypes {
        for computation in [Computation::Exact, Computation::Fast] {
            equals(suite, &small(), dtype, computation)?;
            equals(suite, &eight_heads(2), dtype, computation)?;
            // Rows of whole blocks of every type.
            if dtype.is_quantized() {
                equals(suite, &wide(), dtype, computation)?;
            }
        }
    }
    Ok(())
}

pub(super) fn long_sequences_equal_the_oracle(suite: &Suite<'_>) -> Checked {
    // 331 positions: more than one block of whatever size a cache is kept in, and not a multiple of one.
    const LEN: usize = 331;
    let weights = suite.weights(3);
    let sequence = suite.text(4, LEN);
    let expected = Oracle::new(&*weights)?.logits(&sequence, 0); // [LEN, vocab_size]
    let mut rig = suite.load(&weights, &LoadParams::new(LEN, 2))?;
    // Slot 1 is the one whose positions lie behind another slot's.
    for chunk in [127, 2, 64, 1, 100, 35, 1, 1] {
        let start = rig.lens[1];
        let rows = rig.feed(1, &sequence[start..start + chunk], Want::All)?;
        suite
            .is_exact(&rows, &expected[start..start + chunk])
            .map_err(|broken| broken.at(format_args!("positions {start}.. of {LEN}")))?;
    }
    Ok(())
}

/// Two sequences in one batch, then a decode of each.
fn equals(suite: &Suite<'_>, config: &ModelConfig, dtype: DType, computation: Computation) -> Checked {
    let weights = suite.weights_of(config.clone(), dtype, 2);
    let oracle = Oracle::new(&*weights)?;
    let mut params = LoadParams::new(16, 2);
    params.computation = computation;
    let mut rig = suite.load(&weights, &params)?;
    let long = tokens(5, 11, config.vocab_size);
    let short = tokens(6, 4, config.vocab_size);
    let (prompts, decodes) = ((&long[..10], &short[..3]), (&long[10..], &short[3..]));
    let mut check = || -> Checked {
        let prefilled = rig.step(&[(0, prompts.0, Want::All), (1, prompts.1, Want::All)])?;
        let decoded = rig.step(&[(0, decodes.0, Want::Last), (1, decodes.1, Want::Last)])?;
        for (slot, sequence) in [&long, &short].into_iter().enumerate() {
            let rows = [prefilled[slot].clone(), decoded[slot].clone()].concat();
            suite
                .is_exact_as(dtype, computation, &rows, &oracle.logits(sequence, 0))
                .map_err(|broken| broken.at(format_args!("slot {slot}")))?;
        }
        Ok(())
    };
    check().map_err(|broken| broken.at(format_args!("{dtype}, {computation:?}, {config:?}")))
}

/// Shapes that differ in what engines get wrong.
fn shapes() -> Vec<ModelConfig> {
    vec![
        small(),
        // Multi-head, grouped-query and multi-query attention.
        eight_heads(8),
        eight_heads(4),
        eight_heads(1),
        // The least of everything.
        ModelConfig {
            dim: 3,
            n_layers: 1,
            n_heads: 1,
            n_kv_heads: 1,
            head_dim: 2,
            ffn_dim: 1,
            vocab_size: 2,
            ..small()
        },
        // Heads that together are wider or narrower than the residual stream.
        ModelConfig { dim: 24, head_dim: 10, ..small() },
        ModelConfig { head_dim: 2, n_heads: 6, n_kv_heads: 3, ..small() },
        // The width of a head in every checkpoint of Meta's.
        ModelConfig { dim: 20, n_layers: 1, n_heads: 2, n_kv_heads: 1, head_dim: 128, ..small() },
        // Constants that are not the usual ones: an engine that writes its own in shows.
        ModelConfig { norm_eps: 0.3, ..small() },
        ModelConfig { rope_theta: 20.0, ..small() },
        // A single layer, and more than a few.
        ModelConfig { n_layers: 1, ..small() },
        ModelConfig { dim: 16, n_layers: 7, n_heads: 2, n_kv_heads: 2, ..small() },
    ]
}

/// Eight heads of width 8, the sizes of a checkpoint in the wild.
fn eight_heads(n_kv_heads: usize) -> ModelConfig {
    ModelConfig { dim: 64, n_layers: 3, n_heads: 8, n_kv_heads, ffn_dim: 172, vocab_size: 97, ..small() }
}

/// Rows of one and of two blocks of 256.
fn wide() -> ModelConfig {
    ModelConfig { dim: 256, n_heads: 4, head_dim: 64, ffn_dim: 512, ..small() }
}
