//! Laws of sampling, over random logits.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panic")]

use llama_backend::TokenId;
use llama_core::sampler::{
    Kept, Sampler, SamplingError, SamplingOptions, argmax, log_softmax_at, log_sum_exp, softmax, top_p,
};
use proptest::prelude::*;

fn logits() -> impl Strategy<Value = Vec<f32>> {
    // Few distinct values make ties; many tokens make several steps of selection.
    prop_oneof![
        prop::collection::vec(-20.0..20.0f32, 1..40),
        prop::collection::vec((-8..8i8).prop_map(f32::from), 1..1500),
        prop::collection::vec(-4.0..4.0f32, 600..1500),
    ]
}

fn options(temperature: f64, top_p: f64) -> SamplingOptions {
    SamplingOptions { temperature, top_p }
}

/// The rule as it is said: sort all, drop where the sum before passes p.
fn plain_top_p(probs: &[f32], p: f64) -> Vec<Kept> {
    let mut all: Vec<Kept> = (0..).zip(probs).map(|(id, &prob)| Kept { id: TokenId(id), prob }).collect();
    all.sort_by(|a, b| b.prob.partial_cmp(&a.prob).unwrap()); // stable
    let mut sum = 0.0f64;
    all.retain(|token| {
        sum += f64::from(token.prob);
        sum as f32 - token.prob <= p as f32
    });
    let total = all.iter().map(|token| f64::from(token.prob)).sum::<f64>() as f32;
    all.iter_mut().for_each(|token| token.prob /= total);
    all
}

fn draws(options: SamplingOptions, seed: u64, row: u64, logits: &[f32], n: usize) -> Vec<TokenId> {
    let mut sampler = Sampler::new(options, seed, row).unwrap();
    (0..n).map(|_| sampler.sample(logits).unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn top_p_is_the_plain_rule(logits in logits(), temperature in 0.1..3.0f64, p in prop_oneof![0.0..1.2f64, Just(0.0), Just(0.5), Just(1.0)]) {
        let mut probs = logits;
        softmax(&mut probs, temperature).unwrap();
        let kept = top_p(&probs, p);
        prop_assert!(!kept.is_empty());
        prop_assert_eq!(kept, plain_top_p(&probs, p));
    }

    #[test]
    fn zero_and_negative_temperatures_take_the_first_greatest(logits in logits(), temperature in -3.0..=0.0f64, seed: u64) {
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let first = logits.iter().position(|&logit| logit == best).unwrap();
        prop_assert_eq!(draws(options(temperature, 0.9), seed, 0, &logits, 1), [TokenId(first as u32)]);
        prop_assert_eq!(argmax(&logits).unwrap().0 as usize, first);
    }

    #[test]
    fn seed_and_row_tell_the_draws(logits in logits(), seed: u64, row in 0..100u64) {
        let options = SamplingOptions::default();
        let alone = draws(options, seed, row, &logits, 16);
        // Other rows, drawn in between, change nothing.
        let mut sampler = Sampler::new(options, seed, row).unwrap();
        let mut neighbour = Sampler::new(options, seed, row + 1).unwrap();
        for id in alone {
            neighbour.sample(&logits).unwrap();
            prop_assert_eq!(sampler.sample(&logits).unwrap(), id);
        }
    }

    #[test]
    fn logprobs_are_of_a_distribution(logits in logits(), at in any::<prop::sample::Index>()) {
        let log_sum = log_sum_exp(&logits).unwrap();
        let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - log_sum).exp()).sum();
        prop_assert!((sum - 1.0).abs() < 1e-9, "{}", sum);
        let at = at.index(logits.len());
        let logprob = log_softmax_at(&logits, TokenId(at as u32)).unwrap();
        prop_assert_eq!(logprob, (f64::from(logits[at]) - log_sum) as f32);
        let mut probs = logits;
        softmax(&mut probs, 1.0).unwrap();
        prop_assert!((logprob.exp() - probs[at]).abs() < 1e-5);
    }
}

#[test]
fn rows_and_seeds_differ() {
    let flat = [0.0; 64];
    let options = options(1.0, 1.0);
    let one = draws(options, 1, 0, &flat, 32);
    assert_ne!(one, draws(options, 1, 1, &flat, 32));
    assert_ne!(one, draws(options, 2, 0, &flat, 32));
    assert_eq!(one, draws(options, 1, 0, &flat, 32));
}

/// The stream of a seed is part of the behaviour: answers that were once given can be given again.
#[test]
fn the_stream_of_a_seed_is_fixed() {
    let flat = [0.0; 1000];
    let ids: Vec<u32> = draws(options(1.0, 1.0), 42, 7, &flat, 6).iter().map(|id| id.0).collect();
    assert_eq!(ids, [185, 580, 945, 734, 862, 370]);
}

#[test]
fn many_draws_follow_the_probabilities() {
    let logits = [2.0, 1.0, 0.5, 0.0, -1.0, -6.0];
    let options = options(0.8, 0.95);
    let mut probs = logits;
    softmax(&mut probs, options.temperature).unwrap();
    let kept = top_p(&probs, options.top_p);
    const N: usize = 40_000;
    let drawn = draws(options, 3, 0, &logits, N);
    let mut chi_square = 0.0;
    let mut n_known = 0;
    for Kept { id, prob } in &kept {
        let n = drawn.iter().filter(|drawn| *drawn == id).count();
        let expected = f64::from(*prob) * N as f64;
        chi_square += (n as f64 - expected).powi(2) / expected;
        n_known += n;
    }
    assert_eq!(n_known, N, "only what is kept is drawn");
    // 4 tokens are kept: 3 degrees of freedom, and 16.3 is passed once in a thousand.
    assert_eq!(kept.len(), 4);
    assert!(chi_square < 16.3, "{chi_square}");
}

#[test]
fn what_cannot_be_sampled_is_an_error() {
    let sample = |options: SamplingOptions, logits: &[f32]| Sampler::new(options, 0, 0)?.sample(logits);
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert!(matches!(sample(options(bad, 0.9), &[0.0]), Err(SamplingError::Temperature(_))), "{bad}");
        assert!(matches!(sample(options(1.0, bad), &[0.0]), Err(SamplingError::TopP(_))), "{bad}");
        assert!(matches!(sample(options(0.0, bad), &[0.0]), Err(SamplingError::TopP(_))), "{bad}");
    }
    for temperature in [0.0, 1.0] {
        let options = options(temperature, 0.9);
        assert_eq!(sample(options, &[]), Err(SamplingError::Empty));
        assert_eq!(sample(options, &[0.0, f32::NAN]), Err(SamplingError::NanLogit(TokenId(1))));
    }
    assert!(matches!(sample(options(1e-45, 0.9), &[1.0, 2.0]), Err(SamplingError::Overflow { .. })));
    assert!(matches!(sample(options(1e-50, 0.9), &[0.0, 0.0]), Err(SamplingError::Overflow { .. })));
    // One-hot is no overflow, and a masked token is none either.
    assert_eq!(sample(options(1e-30, 0.9), &[1.0, 2.0]), Ok(TokenId(1)));
    assert_eq!(sample(options(1.0, 1.0), &[f32::NEG_INFINITY, 0.0]), Ok(TokenId(1)));
    assert_eq!(
        log_softmax_at(&[0.0], TokenId(1)),
        Err(SamplingError::IdOutOfRange { id: TokenId(1), vocab_size: 1 })
    );
}
