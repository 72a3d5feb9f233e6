//! Laws of sampling, over random logits.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panic")]

use llama_backend::TokenId;
use llama_core::sampler::{
    Kept, Sampler, SamplingError, SamplingOptions, argmax, log_softmax_at, log_sum_exp, softmax,
    top_logprobs, top_p,
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
    SamplingOptions { temperature, top_p, ..Default::default() }
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

fn draws(options: &SamplingOptions, seed: u64, row: u64, logits: &[f32], n: usize) -> Vec<TokenId> {
    let mut sampler = Sampler::new(options.clone(), seed, row).unwrap();
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
        prop_assert_eq!(draws(&options(temperature, 0.9), seed, 0, &logits, 1), [TokenId(first as u32)]);
        prop_assert_eq!(argmax(&logits).unwrap().0 as usize, first);
    }

    #[test]
    fn seed_and_row_tell_the_draws(logits in logits(), seed: u64, row in 0..100u64) {
        let options = SamplingOptions::default();
        let alone = draws(&options, seed, row, &logits, 16);
        // Other rows, drawn in between, change nothing.
        let mut sampler = Sampler::new(options.clone(), seed, row).unwrap();
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
    let one = draws(&options, 1, 0, &flat, 32);
    assert_ne!(one, draws(&options, 1, 1, &flat, 32));
    assert_ne!(one, draws(&options, 2, 0, &flat, 32));
    assert_eq!(one, draws(&options, 1, 0, &flat, 32));
}

/// The stream of a seed is part of the behaviour: answers that were once given can be given again.
#[test]
fn the_stream_of_a_seed_is_fixed() {
    let flat = [0.0; 1000];
    let ids: Vec<u32> = draws(&options(1.0, 1.0), 42, 7, &flat, 6).iter().map(|id| id.0).collect();
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
    let drawn = draws(&options, 3, 0, &logits, N);
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
        let options = || options(temperature, 0.9);
        assert_eq!(sample(options(), &[]), Err(SamplingError::Empty));
        assert_eq!(sample(options(), &[0.0, f32::NAN]), Err(SamplingError::NanLogit(TokenId(1))));
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

/// What each option may draw, of many draws.
fn drawn(options: &SamplingOptions, logits: &[f32]) -> Vec<u32> {
    let mut ids: Vec<u32> =
        (0..40).flat_map(|row| draws(options, 7, row, logits, 1)).map(|id| id.0).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

#[test]
fn filters_keep_what_they_say() {
    let logits = [0.5f32.ln(), 0.25f32.ln(), 0.15f32.ln(), 0.1f32.ln()];
    let all = SamplingOptions { temperature: 1.0, top_p: 1.0, ..Default::default() };
    assert_eq!(drawn(&all, &logits), [0, 1, 2, 3]);
    let top_k = |k| SamplingOptions { top_k: Some(k), ..all.clone() };
    assert_eq!(drawn(&top_k(1), &logits), [0]);
    assert_eq!(drawn(&top_k(3), &logits), [0, 1, 2]);
    assert_eq!(drawn(&top_k(99), &logits), [0, 1, 2, 3]);
    let min_p = |min_p| SamplingOptions { min_p, ..all.clone() };
    assert_eq!(drawn(&min_p(0.25), &logits), [0, 1, 2]);
    assert_eq!(drawn(&min_p(1.0), &logits), [0]);
    // Of what top_k leaves, 2/3 and 1/3, top_p keeps the first alone; of all four it would keep two.
    assert_eq!(drawn(&SamplingOptions { top_p: 0.6, ..all.clone() }, &logits), [0, 1]);
    assert_eq!(drawn(&SamplingOptions { top_p: 0.6, ..top_k(2) }, &logits), [0]);
}

#[test]
fn penalties_and_bias_do_what_they_say() {
    let greedy = SamplingOptions { temperature: 0.0, ..Default::default() };
    let said = |options: SamplingOptions, prompt: &[u32], logits: &[f32], n| {
        let prompt: Vec<TokenId> = prompt.iter().copied().map(TokenId).collect();
        let mut sampler = Sampler::new(options, 0, 0).unwrap().with_prompt(&prompt);
        (0..n).map(|_| sampler.sample(logits).unwrap().0).collect::<Vec<_>>()
    };
    let repetition = SamplingOptions { repetition_penalty: 2.0, ..greedy.clone() };
    assert_eq!(said(repetition.clone(), &[0], &[3.0, 2.0], 3), [1, 0, 0], "3/2 < 2; then 2/2 < 3/2");
    assert_eq!(said(repetition, &[0], &[-1.0, -1.5], 1), [1], "below 0 it multiplies");
    let frequency = SamplingOptions { frequency_penalty: 0.4, ..greedy.clone() };
    assert_eq!(said(frequency, &[0], &[3.0, 2.0], 6), [0, 0, 0, 1, 0, 1], "of the answer alone, each time");
    let presence = SamplingOptions { presence_penalty: 1.5, ..greedy.clone() };
    assert_eq!(said(presence, &[0], &[3.0, 2.0], 4), [0, 1, 0, 0], "once");
    let bias = SamplingOptions { logit_bias: [(TokenId(0), -100.0)].into(), ..greedy.clone() };
    assert_eq!(said(bias, &[], &[3.0, 2.0], 2), [1, 1]);
    let beyond = SamplingOptions { logit_bias: [(TokenId(2), 1.0)].into(), ..greedy };
    let error = Sampler::new(beyond, 0, 0).unwrap().sample(&[3.0, 2.0]).unwrap_err();
    assert_eq!(error, SamplingError::IdOutOfRange { id: TokenId(2), vocab_size: 2 });
}

#[test]
fn options_out_of_range_are_refused() {
    let ok = SamplingOptions::default;
    let mut refused = vec![SamplingOptions { top_k: Some(0), ..ok() }];
    for bad in [f64::NAN, f64::INFINITY, -0.1] {
        refused.push(SamplingOptions { min_p: bad, ..ok() });
        refused.push(SamplingOptions { repetition_penalty: bad, ..ok() });
    }
    refused.push(SamplingOptions { min_p: 1.1, ..ok() });
    refused.push(SamplingOptions { repetition_penalty: 0.0, ..ok() });
    refused.push(SamplingOptions { repetition_penalty: 1e300, ..ok() });
    for bad in [f64::NAN, f64::INFINITY, -1e300] {
        refused.push(SamplingOptions { frequency_penalty: bad, ..ok() });
        refused.push(SamplingOptions { presence_penalty: bad, ..ok() });
        refused.push(SamplingOptions { logit_bias: [(TokenId(1), bad as f32)].into(), ..ok() });
    }
    for options in refused {
        let error = options.validate().unwrap_err();
        assert!(error.is_invalid_option(), "{options:?}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn the_likeliest_are_those_of_a_full_sort(logits in logits(), n in 0usize..30) {
        let mut expected: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
        expected.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap()); // stable
        let found = top_logprobs(&logits, n).unwrap();
        prop_assert_eq!(found.len(), n.min(logits.len()));
        for (choice, (id, _)) in found.iter().zip(expected) {
            prop_assert_eq!(choice.id, TokenId(id));
            prop_assert_eq!(choice.logprob, log_softmax_at(&logits, choice.id).unwrap());
        }
    }
}
