//! What only the crate can see of itself: how often the engine runs, and what lies in the cache.

use std::sync::Arc;

use llama_backend::testing::RandomWeights;
use llama_backend::{Batch, DType, LoadParams, Logits, Model, ModelConfig, Run, Slot, TokenId, Want};

use crate::model::OnnxModel;
use crate::{load, runtime};

const N_SLOTS: usize = 8;

fn config() -> ModelConfig {
    ModelConfig {
        dim: 32,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 16,
        ffn_dim: 43,
        vocab_size: 61,
        norm_eps: 1e-5,
        rope_theta: 10_000.0,
    }
}

/// A model of 8 slots, with a text of its own length in each.
fn started() -> OnnxModel {
    let environment = runtime::environment(None).unwrap();
    let weights = Arc::new(RandomWeights::new(config(), DType::F32, 1));
    let mut model = load::load(&environment, &*weights, &LoadParams::new(32, N_SLOTS)).unwrap();
    for slot in 0..N_SLOTS {
        let text: Vec<TokenId> = (0..3 + slot as u32).map(|i| TokenId((i * 7 + slot as u32) % 61)).collect();
        step(&mut model, &[(slot, 0, &text, Want::None)]);
    }
    model
}

/// One forward; the rows of logits, and how often the engine ran for them.
fn step(model: &mut OnnxModel, runs: &[(usize, usize, &[TokenId], Want)]) -> (Vec<Vec<f32>>, u64) {
    let runs: Vec<Run<'_>> = runs
        .iter()
        .map(|&(slot, start_pos, tokens, want)| Run { slot: Slot(slot), start_pos, tokens, want })
        .collect();
    let (before, mut logits) = (model.n_runs(), Logits::new());
    model.forward(&Batch::new(&runs), &mut logits).unwrap();
    (logits.rows().map(<[f32]>::to_vec).collect(), model.n_runs() - before)
}

#[test]
fn slots_that_are_not_neighbours_decode_in_one_run() {
    let mut model = started();
    for freed in [1, 4, 6] {
        model.truncate(Slot(freed), 0).unwrap();
    }
    let live = [0, 2, 3, 5, 7];
    let held = live.map(|slot| model.held(slot));
    let next = [TokenId(11)];
    let (_, n_runs) = step(&mut model, &live.map(|slot| (slot, 3 + slot, &next[..], Want::Last)));
    assert_eq!(n_runs, 1);
    // Whatever was moved, each slot holds what it held, and one position more.
    for (slot, held) in live.into_iter().zip(held) {
        model.truncate(Slot(slot), 3 + slot).unwrap();
        assert_eq!(model.held(slot), held, "slot {slot}");
    }
}

#[test]
fn slots_that_do_not_decode_keep_every_bit() {
    let mut model = started();
    let next = [TokenId(11)];
    for decoding in [vec![0, 7], vec![1, 3, 5], vec![6], vec![2, 0, 5, 7], vec![4, 1]] {
        let others: Vec<usize> = (0..N_SLOTS).filter(|slot| !decoding.contains(slot)).collect();
        let held = |model: &OnnxModel| others.iter().map(|&slot| model.held(slot)).collect::<Vec<_>>();
        let before = held(&model);
        let runs: Vec<_> = decoding.iter().map(|&slot| (slot, 3 + slot, &next[..], Want::Last)).collect();
        let (_, n_runs) = step(&mut model, &runs);
        assert_eq!((n_runs, held(&model)), (1, before), "{decoding:?}");
        decoding.iter().for_each(|&slot| model.truncate(Slot(slot), 3 + slot).unwrap());
    }
}

#[test]
fn a_mixed_batch_costs_one_run_for_its_decodes_and_one_for_each_prefill() {
    let mut model = started();
    model.truncate(Slot(6), 0).unwrap();
    let (next, more) = ([TokenId(11)], [TokenId(3), TokenId(5), TokenId(8)]);
    let (rows, n_runs) = step(
        &mut model,
        &[
            (2, 5, &more, Want::Last),
            (7, 10, &next, Want::Last),
            (6, 0, &more, Want::All),
            (0, 3, &next, Want::All),
            (4, 7, &next, Want::None),
        ],
    );
    assert_eq!((rows.len(), n_runs), (6, 3));
}
