//! Scores are prompt logprobs: those of `generate` with echo, cut where the continuation begins, however they are asked for.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod golden;

use std::path::PathBuf;
use std::sync::LazyLock;

use golden::data;
use llama_core::{Error, GenerationOptions, Llama, Score, TokenId, Verdict, WindowOptions, guard_fn};
use proptest::prelude::*;

fn load(checkpoint: impl Into<PathBuf>, max_seq_len: usize) -> Llama {
    let builder = Llama::builder().checkpoint(checkpoint.into()).max_seq_len(max_seq_len);
    builder.max_batch_size(3).build().unwrap()
}

/// tiny-chat: the one that is always there.
static LLAMA: LazyLock<Llama> =
    LazyLock::new(|| load(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-chat"), 256));

/// What the reference's own call says of these tokens.
fn echoed(llama: &Llama, tokens: &[TokenId]) -> Vec<f32> {
    let options =
        GenerationOptions { max_gen_len: Some(0), echo: true, logprobs: true, ..Default::default() };
    llama.generate(&[tokens.to_vec()], &options).unwrap().1.unwrap().remove(0)
}

fn ids(tokens: &[u32]) -> Vec<TokenId> {
    [1].iter().chain(tokens).copied().map(TokenId).collect()
}

/// Tokens that are neither control ids nor beyond tiny-chat's vocabulary.
fn tokens(len: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(3u32..1024, len)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(16) })]

    /// log p(ab | prompt) = log p(a | prompt) + log p(b | prompt a), to the bit of each token's; and it is what `generate` echoes.
    #[test]
    fn a_score_is_additive(prompt in tokens(0..60), a in tokens(1..20), b in tokens(1..20)) {
        let prompt = ids(&prompt);
        let (a, b) = (ids(&a)[1..].to_vec(), ids(&b)[1..].to_vec());
        let pair = |prompt: &[&[TokenId]], scored: &[&[TokenId]]| (prompt.concat(), scored.concat());
        let pairs = [pair(&[&prompt], &[&a, &b]), pair(&[&prompt], &[&a]), pair(&[&prompt, &a], &[&b])];
        let scores = LLAMA.score_tokens(&pairs).unwrap();
        prop_assert_eq!(&scores[1..].iter().cloned().collect::<Score>(), &scores[0]);
        prop_assert_eq!(&scores[0].logprobs, &echoed(&LLAMA, &[&prompt[..], &a, &b].concat())[prompt.len()..]);
        prop_assert!((scores[0].logprob() - scores[1].logprob() - scores[2].logprob()).abs() < 1e-9);
    }

    /// Some of them with a prompt in common, which is prefilled once.
    #[test]
    fn a_batch_is_its_rows_alone(rows in prop::collection::vec((0u32..3, tokens(1..12)), 1..12)) {
        let prompt = |kind: u32| ids(&(0..50).map(|i| 3 + kind * 300 + i).collect::<Vec<_>>());
        let pairs: Vec<_> = rows.iter().map(|(kind, tokens)| (prompt(*kind), ids(tokens)[1..].to_vec())).collect();
        let batch = LLAMA.score_tokens(&pairs).unwrap();
        for (pair, score) in pairs.into_iter().zip(batch) {
            prop_assert_eq!(&LLAMA.score_tokens(&[pair]).unwrap()[0], &score);
        }
    }

    /// Each token has one score, behind BOS and what its window has in front of it.
    #[test]
    fn any_stride_scores_each_token_once(words in "[a-z ,.]{1,300}", context in 2usize..100, share in 1usize..99) {
        let stride = 1 + share % (context - 1);
        let options = WindowOptions { context: Some(context), stride: Some(stride) };
        let windows = LLAMA.score_text(&words, options).unwrap();
        let n_windows = windows.len();
        let parts: Vec<Score> = windows.map(Result::unwrap).collect();
        prop_assert_eq!(parts.len(), n_windows);
        let (score, text): (Score, _) = (parts.into_iter().collect(), LLAMA.tokenizer().encode(&words));
        prop_assert_eq!(&score.tokens, &text);
        for (at, &logprob) in score.logprobs.iter().enumerate() {
            // The first window that holds it.
            let begins = (at + 1).saturating_sub(context - 1).div_ceil(stride) * stride;
            if at % 11 == 0 {
                let window: Vec<_> = [TokenId(1)].into_iter().chain(text[begins..=at].iter().copied()).collect();
                prop_assert_eq!(logprob, *echoed(&LLAMA, &window).last().unwrap(), "token {}", at);
            }
        }
    }
}

#[test]
fn every_checkpoint_is_scored_as_it_echoes() {
    let text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.";
    for name in ["stories260K", "random256", "stories260K-hf-f16", "stories260K-gguf/stories260K-q4_0.gguf"] {
        let Some(path) = data(name) else { continue };
        let llama = load(path, 128);
        let score = llama.score("Once upon a time", &text["Once upon a time".len()..]).unwrap();
        let whole = llama.tokenizer().encode_prompt(text);
        let echo = echoed(&llama, &whole);
        let border = whole.len() - score.tokens.len();
        assert_eq!((&score.tokens[..], &score.logprobs[..]), (&whole[border..], &echo[border..]), "{name}");
        println!("{name}: {:.4} for {} tokens", score.logprob(), score.tokens.len());
    }
}

#[test]
fn what_is_said_at_temperature_0_is_greedy() {
    let prompt = "[INST] Who are you? [/INST]";
    let options = GenerationOptions { temperature: 0.0, max_gen_len: Some(12), ..Default::default() };
    let tokens = LLAMA.tokenizer().encode_prompt(prompt);
    let said = LLAMA.generate(std::slice::from_ref(&tokens), &options).unwrap().0.remove(0);
    assert!(said.len() > 3);
    let other = TokenId(if said[2] == TokenId(700) { 701 } else { 700 });
    let changed: Vec<_> = said.iter().enumerate().map(|(i, &id)| if i == 2 { other } else { id }).collect();
    let scores = LLAMA.score_tokens(&[(tokens.clone(), said), (tokens, changed)]).unwrap();
    assert_eq!(scores.iter().map(|score| score.is_greedy).collect::<Vec<_>>(), [true, false]);
    assert!(scores[0].logprob() > scores[1].logprob() && scores[0].perplexity() < scores[1].perplexity());
}

#[test]
fn the_border_is_where_the_prompts_own_tokens_end() {
    let scored = |prompt: &str, continuation: &str| LLAMA.score(prompt, continuation).unwrap();
    let tokenizer = LLAMA.tokenizer();
    // A space at the prompt's end is the continuation's.
    let apart = scored("What to see in", " Paris");
    assert_eq!(tokenizer.decode(&apart.tokens).unwrap(), "Paris");
    assert_eq!(scored("What to see in ", "Paris"), apart);
    assert_eq!(scored("What to see in \n", "Paris").tokens, tokenizer.encode("in \nParis")[1..]);
    // Nothing in front: all is scored, behind BOS.
    assert_eq!(scored("", "What to see").tokens, tokenizer.encode("What to see"));
    assert_eq!(scored("  ", "What").tokens, tokenizer.encode("  What"));
    // A token that reaches across the border is scored, and nothing of the text is lost.
    let mut across = 0;
    for text in ["mayonnaise", "What is so great about the Eiffel Tower?", "naïve café 日本", "🦙🦙"]
    {
        let whole = tokenizer.encode_prompt(text);
        for (at, _) in text.char_indices() {
            let score = scored(&text[..at], &text[at..]);
            let border = whole.len() - score.tokens.len();
            assert_eq!(whole[border..], score.tokens);
            let prompt = tokenizer.encode_prompt(text[..at].trim_end());
            assert!(prompt.starts_with(&whole[..border]));
            across += usize::from(prompt.len() > border);
        }
    }
    assert!(across > 10, "{across}");
}

#[test]
fn what_cannot_be_scored_is_refused_before_anything_is_computed() {
    let llama = load(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-chat"), 32);
    let error = llama.score_batch(&[("a", " b"), ("a ", "")]).unwrap_err();
    assert!(matches!(error, Error::EmptyContinuation { row: 1 }), "{error}");
    assert_eq!(error.to_string(), "continuation 1 adds no token to its prompt: at least one is expected");
    let none: [(&str, &str); 0] = [];
    assert!(matches!(llama.score_batch(&none), Err(Error::Empty { .. })));
    let error = llama.score("word ".repeat(40).as_str(), "x").unwrap_err();
    assert!(
        matches!(error, Error::ContextOverflow { row: 0, prompt: 42.., reserved: 0, limit: 32 }),
        "{error}"
    );
    let refused = |pair: (&[u32], &[u32])| {
        let ids = |ids: &[u32]| ids.iter().copied().map(TokenId).collect();
        llama.score_tokens(&[(ids(pair.0), ids(pair.1))]).unwrap_err()
    };
    assert!(matches!(refused((&[], &[5])), Error::EmptyPrompt { row: 0 }));
    assert!(matches!(refused((&[1], &[])), Error::EmptyContinuation { row: 0 }));
    assert!(matches!(refused((&[1, 2], &[3, 1024])), Error::TokenOutOfRange { row: 0, position: 3, .. }));
    assert!(matches!(refused((&[1], &[5; 32])), Error::ContextOverflow { prompt: 33, limit: 32, .. }));

    let text = |context, stride| llama.score_text("some words", WindowOptions { context, stride });
    for context in [0, 1, 33] {
        assert!(matches!(text(Some(context), None), Err(Error::Option { option: "context", .. })));
    }
    for stride in [0, 10, 11] {
        assert!(matches!(text(Some(10), Some(stride)), Err(Error::Option { option: "stride", .. })));
    }
    assert!(matches!(llama.score_text("", WindowOptions::default()), Err(Error::Empty { what: "tokens" })));

    // What a guard would refuse is not told by its logprobs either.
    let guarded = llama.clone().with_guard(guard_fn(|_| Verdict::Allow));
    assert!(matches!(guarded.score("a", "b"), Err(Error::Guarded { call: "score" })));
    assert!(matches!(guarded.score_text("a", WindowOptions::default()), Err(Error::Guarded { .. })));
    assert_eq!(llama.stats().admitted, 0);

    // The least and the most.
    assert_eq!(llama.score_tokens(&[(vec![TokenId(1)], vec![TokenId(5); 31])]).unwrap()[0].tokens.len(), 31);
    assert!(text(Some(2), None).unwrap().all(|window| window.is_ok()));
}

#[test]
fn answers_to_one_question_prefill_it_once() {
    let llama = load(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-chat"), 256);
    let prompt = format!("Q: {}?\nA:", "What is so great about the Eiffel Tower".repeat(8));
    let question = llama.tokenizer().encode_prompt(&prompt).len();
    let pairs: Vec<_> = [" Paris", " Rome", " the view", " nothing at all", " a garden"]
        .map(|answer| (&prompt, answer))
        .into();
    let scores = llama.score_batch(&pairs).unwrap();
    let stats = llama.stats();
    let answers: usize = scores.iter().map(|score| score.tokens.len()).sum();
    assert!(question > 64, "long enough to be waited for");
    // The token before an answer is fed for each: the answer's first is expected there.
    assert_eq!(stats.prefilled_tokens as usize, question - 1 + answers);
    assert_eq!((stats.prefix_hits, stats.generated_tokens), (4, 0));
}
