//! What the seam itself promises: shapes that make sense, and the rules of a batch.

use llama_backend::testing::Rng;
use llama_backend::{
    BackendError, Batch, DType, LoadParams, MemoryPlan, ModelConfig, Run, Slot, Slots, TokenId, Want,
    meta_ffn_dim,
};

/// The shape of one of Meta's checkpoints, from its `params.json`.
fn meta(dim: usize, n_layers: usize, n_heads: usize, n_kv_heads: usize, ffn_dim: usize) -> ModelConfig {
    ModelConfig {
        dim,
        n_layers,
        n_heads,
        n_kv_heads,
        head_dim: dim / n_heads,
        ffn_dim,
        vocab_size: 32_000,
        norm_eps: 1e-5,
        rope_theta: 10_000.0,
    }
}

fn llama_7b() -> ModelConfig {
    meta(4096, 32, 32, 32, 11_008)
}

#[test]
fn parameters_of_the_published_models() {
    assert_eq!(llama_7b().n_params(), 6_738_415_616);
    assert_eq!(meta(5120, 40, 40, 40, 13_824).n_params(), 13_015_864_320);
    assert_eq!(meta(8192, 80, 64, 8, 28_672).n_params(), 68_976_648_192);
}

#[test]
fn feed_forward_widths_of_the_published_models() {
    assert_eq!(meta_ffn_dim(4096, None, 256), Some(11_008));
    assert_eq!(meta_ffn_dim(5120, None, 256), Some(13_824));
    assert_eq!(meta_ffn_dim(8192, Some(1.3), 4096), Some(28_672));
    assert_eq!(meta_ffn_dim(64, None, 4), Some(172));
}

#[test]
fn feed_forward_widths_that_cannot_be() {
    for multiplier in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
        assert_eq!(meta_ffn_dim(64, Some(multiplier), 4), None, "{multiplier}");
    }
    assert_eq!(meta_ffn_dim(usize::MAX, None, 4), None);
    assert_eq!(meta_ffn_dim(64, None, usize::MAX), Some(usize::MAX));
    assert_eq!(meta_ffn_dim(64, None, 0), None);
}

#[test]
fn parameters_are_the_elements_of_all_tensors() {
    let mut rng = Rng::new(1);
    for _ in 0..100 {
        let config = ModelConfig {
            dim: 1 + rng.below(100),
            n_layers: rng.below(5),
            n_heads: 1 + rng.below(9),
            n_kv_heads: 1 + rng.below(9),
            head_dim: 1 + rng.below(20),
            ffn_dim: 1 + rng.below(100),
            vocab_size: 1 + rng.below(100),
            ..llama_7b()
        };
        let elements: usize = config.tensors().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        assert_eq!(config.n_params(), elements as u64, "{config:?}");
    }
    let absurd = ModelConfig { dim: usize::MAX, n_layers: usize::MAX, n_heads: 1, head_dim: 2, ..llama_7b() };
    assert_eq!(absurd.n_params(), u64::MAX);
}

#[test]
fn a_valid_shape_stays_valid_only_within_its_rules() {
    assert!(llama_7b().validate().is_ok());
    type Change = fn(&mut ModelConfig);
    let bad: [(&str, Change); 16] = [
        ("dim", |c| c.dim = 0),
        ("dim", |c| c.dim = usize::MAX),
        ("n_layers", |c| c.n_layers = 0),
        ("n_heads", |c| c.n_heads = 0),
        ("n_kv_heads", |c| c.n_kv_heads = 0),
        ("n_kv_heads", |c| c.n_kv_heads = 3),
        ("n_kv_heads", |c| c.n_kv_heads = 64),
        ("head_dim", |c| c.head_dim = 127),
        ("ffn_dim", |c| c.ffn_dim = 0),
        ("vocab_size", |c| c.vocab_size = (1 << 24) + 1),
        ("n_heads * head_dim", |c| c.head_dim = 1 << 24),
        ("norm_eps", |c| c.norm_eps = f32::NAN),
        ("norm_eps", |c| c.norm_eps = -1e-6),
        ("rope_theta", |c| c.rope_theta = 0.0),
        ("rope_theta", |c| c.rope_theta = f64::NAN),
        ("rope_theta", |c| c.rope_theta = f64::INFINITY),
    ];
    for (field, change) in bad {
        let mut config = llama_7b();
        change(&mut config);
        match config.validate() {
            Err(BackendError::Config { what, .. }) => assert_eq!(what, field, "{config:?}"),
            other => panic!("{field}: {other:?}"),
        }
    }
}

#[test]
fn limits_are_checked_one_by_one() {
    let mut params = LoadParams::new(4096, 4);
    assert!(params.validate().is_ok());
    params.threads = Some(0);
    assert!(matches!(params.validate(), Err(BackendError::Params { what: "threads", .. })));
    let params = LoadParams::new(0, 4);
    assert!(matches!(params.validate(), Err(BackendError::Params { what: "max_seq_len", .. })));
    let params = LoadParams::new(4096, 0);
    assert!(matches!(params.validate(), Err(BackendError::Params { what: "n_slots", .. })));
}

#[test]
fn a_plan_sums_without_overflow() {
    let plan = MemoryPlan { weights: u64::MAX - 1, in_place: u64::MAX - 2, kv_cache: 1, scratch: 1 };
    assert_eq!((plan.total(), plan.allocated()), (u64::MAX, 2));
}

/// Slots for a vocabulary of 10, 3 slots of 8 positions, 6 tokens a batch.
fn slots() -> Slots {
    let config = ModelConfig { vocab_size: 10, ..llama_7b() };
    let mut params = LoadParams::new(8, 3);
    params.max_batch_tokens = 6;
    Slots::new(&config, &params)
}

/// Any batch at all is either taken, and then every slot grows by its run, or refused by a rule that it does break.
#[test]
fn a_batch_is_taken_if_and_only_if_it_keeps_every_rule() {
    let mut rng = Rng::new(2);
    let (mut slots, mut lens) = (slots(), [0_usize; 3]);
    let mut n_taken = 0;
    for _ in 0..20_000 {
        let texts: Vec<Vec<TokenId>> = (0..rng.below(4))
            .map(|_| (0..rng.below(5)).map(|_| TokenId(rng.below(11) as u32)).collect())
            .collect();
        let runs: Vec<Run<'_>> = texts
            .iter()
            .map(|tokens| {
                let slot = rng.below(4);
                // Mostly right, sometimes one off.
                let len = lens.get(slot).copied().unwrap_or(0);
                let start_pos = [len, len, len, len + 1, len.saturating_sub(1)][rng.below(5)];
                Run { slot: Slot(slot), start_pos, tokens, want: Want::Last }
            })
            .collect();
        let batch = Batch::new(&runs);
        let twice = |slot| runs.iter().filter(|run| run.slot == slot).count() > 1;
        let before = slots.clone();
        match slots.check(&batch) {
            Ok(()) => {
                n_taken += 1;
                slots.advance(&batch);
                for run in &runs {
                    assert_eq!(run.start_pos, lens[run.slot.0]);
                    assert!(!run.tokens.is_empty() && !twice(run.slot));
                    assert!(run.tokens.iter().all(|token| token.0 < 10));
                    lens[run.slot.0] += run.tokens.len();
                    assert!(lens[run.slot.0] <= 8);
                }
                assert!(!runs.is_empty() && batch.n_tokens() <= 6);
            }
            Err(error) => {
                let broken = match error {
                    BackendError::EmptyBatch => runs.is_empty(),
                    BackendError::BatchTooLarge { n_tokens, limit } => {
                        n_tokens > limit && n_tokens == batch.n_tokens()
                    }
                    BackendError::UnknownSlot { slot, n_slots } => slot.0 >= n_slots,
                    BackendError::DuplicateSlot { slot } => twice(slot),
                    BackendError::EmptyRun { slot } => {
                        runs.iter().any(|r| r.slot == slot && r.tokens.is_empty())
                    }
                    BackendError::NotContiguous { slot, start_pos, len } => {
                        len == lens[slot.0] && start_pos != len
                    }
                    BackendError::SlotFull { end_pos, max_seq_len, .. } => end_pos > max_seq_len,
                    BackendError::TokenOutOfRange { token, vocab_size, .. } => token.0 as usize >= vocab_size,
                    other => panic!("{other:?} for {runs:?}"),
                };
                assert!(broken, "{error} for {runs:?}");
            }
        }
        if slots == before {
            // Nothing was taken: make room now and then, so that the walk goes on.
            let slot = rng.below(3);
            let len = rng.below(lens[slot] + 1);
            slots.truncate(Slot(slot), len).unwrap();
            lens[slot] = len;
        }
        for (slot, &len) in lens.iter().enumerate() {
            assert_eq!(slots.len(Slot(slot)).unwrap(), len);
        }
        assert_eq!(slots.is_empty(), lens == [0; 3]);
    }
    assert!(n_taken > 1000, "only {n_taken} batches were taken");
}

#[test]
fn a_run_of_any_length_does_not_overflow() {
    let tokens = [TokenId(1)];
    let runs = [Run { slot: Slot(0), start_pos: usize::MAX, tokens: &tokens, want: Want::Last }];
    assert!(matches!(slots().check(&Batch::new(&runs)), Err(BackendError::NotContiguous { .. })));
}

#[test]
fn forks_and_truncations_stay_within_what_a_slot_holds() {
    let mut slots = slots();
    let tokens = [TokenId(1); 5];
    let runs = [Run { slot: Slot(1), start_pos: 0, tokens: &tokens, want: Want::None }];
    slots.advance(&Batch::new(&runs));
    let beyond = |result| matches!(result, Err(BackendError::BeyondLength { len: 5, wanted: 6, .. }));
    assert!(beyond(slots.truncate(Slot(1), 6)));
    assert!(beyond(slots.fork(Slot(1), Slot(0), 6)));
    assert!(matches!(slots.fork(Slot(1), Slot(3), 5), Err(BackendError::UnknownSlot { .. })));
    slots.fork(Slot(1), Slot(0), 4).unwrap();
    slots.truncate(Slot(1), 0).unwrap();
    let lens = [0, 1, 2].map(|slot| slots.len(Slot(slot)).unwrap());
    assert_eq!(lens, [4, 0, 0]);
}

#[test]
fn rows_are_counted_by_want() {
    let tokens = [TokenId(1); 5];
    let run = |slot, want| Run { slot: Slot(slot), start_pos: 0, tokens: &tokens, want };
    let runs = [run(0, Want::None), run(1, Want::Last), run(2, Want::All)];
    let batch = Batch::new(&runs);
    assert_eq!((batch.n_tokens(), batch.n_rows()), (15, 6));
}

#[test]
fn dtypes_have_their_sizes() {
    assert_eq!([DType::F32, DType::F16, DType::BF16].map(DType::size), [4, 2, 2]);
}
