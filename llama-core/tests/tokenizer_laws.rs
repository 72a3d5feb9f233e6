//! The tokenizer against SentencePiece said plainly, over random vocabularies, texts and ids.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panic")]

mod golden;
mod sentencepiece;

use std::time::{Duration, Instant};

use golden::data;
use llama_backend::TokenId;
use llama_core::tokenizer::{Tokenizer, TokenizerError};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use sentencepiece::{CONTROL, Merger, Model};

fn open(model: &Model) -> Tokenizer {
    Tokenizer::from_bytes(&model.to_bytes()).unwrap_or_else(|e| panic!("{e}"))
}

fn numbers(ids: &[TokenId]) -> Vec<u32> {
    ids.iter().map(|id| id.0).collect()
}

/// The pieces of a model that was read.
fn pieces(tokenizer: &Tokenizer) -> Vec<(String, f32, u8)> {
    (0..tokenizer.vocab_size() as u32)
        .map(|id| {
            let piece = tokenizer.piece(TokenId(id)).unwrap().to_owned();
            let kind = match id {
                0 => sentencepiece::UNKNOWN,
                1 | 2 => CONTROL,
                3..259 => sentencepiece::BYTE,
                _ => sentencepiece::NORMAL,
            };
            (piece, tokenizer.score(TokenId(id)).unwrap_or(0.0), kind)
        })
        .collect()
}

/// What `identity` with a dummy prefix makes of a text.
fn prepared(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("▁{}", text.replace(' ', "▁")) }
}

/// A vocabulary trained by byte pair encoding on a text over few letters: like a real one, only smaller.
fn trained() -> impl Strategy<Value = Model> {
    ("[ab▁]{30,120}", 2..60usize, 0..6usize).prop_map(|(corpus, merges, spaces)| {
        let mut symbols: Vec<String> = corpus.chars().map(String::from).collect();
        let mut learned: Vec<String> = Vec::new();
        while learned.len() < merges {
            let mut counts = std::collections::BTreeMap::new();
            for pair in symbols.windows(2) {
                *counts.entry(pair.concat()).or_insert(0) += 1;
            }
            counts.retain(|pair: &String, _| !learned.contains(pair));
            let Some((best, _)) = counts.into_iter().max_by_key(|&(_, n)| n) else {
                break;
            };
            let mut at = 0;
            while at + 1 < symbols.len() {
                if format!("{}{}", symbols[at], symbols[at + 1]) == best {
                    symbols[at] = best.clone();
                    symbols.remove(at + 1);
                }
                at += 1;
            }
            learned.push(best);
        }
        // As in Llama 2: runs of spaces, all with one score below all others, and single letters. `b` has no piece.
        learned.retain(|piece| piece.chars().any(|c| c != '▁'));
        let scored = learned.into_iter().zip((0..).map(|rank| -(rank as f32)));
        let runs = (2..2 + spaces).map(|n| ("▁".repeat(n), -1e9));
        Model::new(scored.chain(runs).chain([("▁".into(), -1e9), ("a".into(), -1e9)]))
    })
}

/// A vocabulary that no training would give: any pieces over two letters, in any order.
fn untrained() -> impl Strategy<Value = Model> {
    let pieces = prop::collection::btree_set("[ab]{2,6}", 8..40);
    pieces.prop_map(Vec::from_iter).prop_shuffle().prop_map(|pieces| {
        let scored = pieces.into_iter().zip((0..).map(|rank| -(rank as f32)));
        Model::new(scored.chain([("▁".into(), -1e9), ("a".into(), -1e9)]))
    })
}

/// Ids of all kinds, with a taste for bytes and the beginnings of characters.
fn ids(vocab_size: u32) -> impl Strategy<Value = Vec<u32>> {
    let byte = prop::sample::select(vec![
        0xE2u32, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80, 0xC3, 0xA9, 0xEF, 0xBF, 0xBD, 0x20, 0xED,
    ]);
    prop::collection::vec(
        prop_oneof![4 => byte.prop_map(|b| b + 3), 1 => 0..3u32, 1 => 3..259u32, 2 => 259..vocab_size],
        0..24,
    )
}

/// A few pieces that matter to decoding, with and without spaces at the front.
fn small(remove_extra_whitespaces: bool) -> Model {
    let pieces = ["▁", "▁▁", "▁a", "a", "é", "a▁", "▁▁a"];
    let scores = [-9.0, -8.0, 0.0, -9.0, -9.0, -1.0, -2.0];
    Model { remove_extra_whitespaces, ..Model::new(pieces.map(String::from).into_iter().zip(scores)) }
}

proptest! {
    // No file of failing seeds: a failing case prints what it needs.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn encodes_as_sentencepiece(
        model in prop_oneof![trained(), untrained()],
        texts in prop::collection::vec("[ab]{0,40}|[ab ▁c<s>]{0,40}", 8),
    ) {
        let tokenizer = open(&model);
        let merger = Merger::new(&model.pieces);
        for text in texts {
            let expected = merger.encode(&prepared(&text));
            prop_assert_eq!(numbers(&tokenizer.encode(&text)), expected, "{:?} by {:?}", text, &model.pieces[259..]);
        }
    }

    #[test]
    fn a_text_comes_back(text in any::<String>()) {
        let tokenizer = open(&small(false));
        // `▁` is how a space is written, so the two are one.
        prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text)).unwrap(), text.replace('▁', " "));
    }

    #[test]
    fn text_never_becomes_structure(text in "(<s>|</s>|<unk>|<0x0A>|<pad>|[a ▁<>]|\\PC){0,12}") {
        let tokenizer = open(&small(false));
        for id in tokenizer.encode(&text) {
            prop_assert!(id.0 >= 3, "{:?}", text);
        }
    }

    #[test]
    fn extra_spaces_are_removed(text in "[ ab▁é]{0,16}") {
        let tokenizer = open(&small(true));
        let words: Vec<&str> = text.split(' ').filter(|word| !word.is_empty()).collect();
        let plain = words.join(" ").replace(' ', "▁");
        let expected = if plain.is_empty() { plain } else { format!("▁{plain}") };
        let expected = Merger::new(&small(true).pieces).encode(expected.trim_end_matches('▁'));
        prop_assert_eq!(numbers(&tokenizer.encode(&text)), expected);
    }

    #[test]
    fn a_stream_joins_to_the_whole((ids, remove) in (ids(266), any::<bool>())) {
        let model = small(remove);
        let tokenizer = open(&model);
        let whole = sentencepiece::decode(&model.pieces, remove, &ids);
        let ids: Vec<TokenId> = ids.into_iter().map(TokenId).collect();
        prop_assert_eq!(&tokenizer.decode(&ids).unwrap(), &whole);
        let mut detokenizer = tokenizer.detokenizer();
        let mut text = String::new();
        for (i, &id) in ids.iter().enumerate() {
            text.push_str(&detokenizer.push(id).unwrap());
            let so_far = tokenizer.decode(&ids[..=i]).unwrap();
            prop_assert!(so_far.starts_with(&text));
            // What is held back is less than one character.
            prop_assert!(so_far.chars().count() - text.chars().count() <= 3);
            prop_assert!(whole.starts_with(&text));
        }
        prop_assert_eq!(text + &detokenizer.finish(), whole);
    }

    #[test]
    fn a_spoilt_model_is_an_error_or_a_tokenizer(at in any::<prop::sample::Index>(), byte: u8) {
        let mut bytes = small(false).to_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(tokenizer) = Tokenizer::from_bytes(&bytes) {
            let ids = tokenizer.encode("a é ▁ <s>");
            prop_assert!(tokenizer.decode(&ids).is_ok());
        }
    }
}

#[test]
fn a_model_cut_short_is_an_error() {
    let bytes = small(false).to_bytes();
    for len in 0..bytes.len() {
        assert!(Tokenizer::from_bytes(&bytes[..len]).is_err(), "{len} of {}", bytes.len());
    }
}

#[test]
fn what_is_missing_or_tied_or_twice_is_named() {
    let mut model = small(false);
    model.pieces.retain(|piece| piece.0 != "<0x7F>");
    let error = Tokenizer::from_bytes(&model.to_bytes()).unwrap_err();
    assert_eq!(error.to_string(), "there is no byte piece \"<0x7F>\"");

    let mut model = small(false);
    model.pieces[2].2 = sentencepiece::NORMAL;
    let error = Tokenizer::from_bytes(&model.to_bytes()).unwrap_err();
    assert_eq!(error.to_string(), "there is no control piece \"</s>\"");

    let mut model = small(false);
    let a = model.pieces.iter().position(|piece| piece.0 == "▁a").unwrap();
    model.pieces[a].1 = -1.0; // as "a▁" has
    let error = Tokenizer::from_bytes(&model.to_bytes()).unwrap_err();
    assert!(matches!(error, TokenizerError::TiedScores { .. }) && error.is_unsupported(), "{error}");

    let mut model = small(false);
    model.pieces.push(("a".into(), -3.0, sentencepiece::NORMAL));
    let error = Tokenizer::from_bytes(&model.to_bytes()).unwrap_err();
    assert!(matches!(error, TokenizerError::BadPiece { id: 266, .. }), "{error}");
}

#[test]
fn an_id_out_of_range_is_named_and_loses_nothing() {
    let tokenizer = open(&small(false));
    let mut detokenizer = tokenizer.detokenizer();
    assert_eq!(detokenizer.push(TokenId(0xE2 + 3)).unwrap(), "");
    let error = detokenizer.push(TokenId(266)).unwrap_err();
    assert_eq!(error.to_string(), "token id 266 (at 1) is out of range: there are 266 pieces");
    assert_eq!(detokenizer.push(TokenId(0x82 + 3)).unwrap(), "");
    assert_eq!(detokenizer.push(TokenId(0xAC + 3)).unwrap(), "€");
}

/// The examples of the documentation read a file: this model.
#[test]
fn the_fixture_is_the_small_model() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizer.model");
    assert!(std::fs::read(path).unwrap() == small(false).to_bytes(), "{path} is to be written again");
}

#[test]
fn debug_tells_the_facts_and_not_the_vocabulary() {
    let text = format!("{:?}", open(&small(false)));
    assert!(text.contains("vocab_size: 266") && text.len() < 400, "{text}");
}

/// A first piece of 123 bytes makes a protobuf begin like JSON: a line feed and a brace.
#[test]
fn a_model_that_begins_like_json_is_a_model() {
    let mut model = small(false);
    model.pieces.insert(0, ("x".repeat(114), -5.0, sentencepiece::NORMAL));
    let bytes = model.to_bytes();
    assert!(bytes.starts_with(b"\n{"));
    assert_eq!(Tokenizer::from_bytes(&bytes).unwrap().unk_id(), TokenId(1));
}

#[test]
fn tokenizers_are_shared_between_threads() {
    fn shared<T: Send + Sync + Clone>(_: &T) {}
    let tokenizer = open(&small(false));
    shared(&tokenizer);
    std::thread::scope(|scope| {
        let ids = scope.spawn(|| tokenizer.encode("a é")).join().unwrap();
        assert_eq!(ids, tokenizer.encode("a é"));
    });
}

#[test]
fn a_megabyte_is_no_matter() {
    let tokenizer = open(&small(false));
    for text in ["a é<s>".repeat(1 << 17), " ".repeat(1 << 20), "a".repeat(1 << 20)] {
        let begin = Instant::now();
        let ids = tokenizer.encode(&text);
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    }
}

/// Over the real vocabularies: texts of random pieces, whose ends merge with their neighbours, and of runs of spaces.
#[test]
fn encodes_as_sentencepiece_with_real_vocabularies() {
    for dir in ["llama2-tokenizer", "stories260K"] {
        let Some(path) = data(&format!("{dir}/tokenizer.model")) else {
            return;
        };
        let tokenizer = Tokenizer::open(path).unwrap();
        let pieces = pieces(&tokenizer);
        let merger = Merger::new(&pieces);
        let piece = (259..pieces.len()).prop_map({
            let pieces = pieces.clone();
            move |id| pieces[id].0.clone()
        });
        let part = prop_oneof![4 => piece, 1 => "[ ▁]{1,40}", 1 => "[-=a-c]{1,20}", 1 => any::<String>()];
        let texts = prop::collection::vec(prop::collection::vec(part, 1..6), 8);
        let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
        let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let mut runner = TestRunner::new_with_rng(config, rng);
        let result = runner.run(&texts, |texts| {
            for text in texts.iter().map(|parts| parts.concat()) {
                let expected = merger.encode(&prepared(&text));
                prop_assert_eq!(numbers(&tokenizer.encode(&text)), expected, "{:?}", text);
            }
            Ok(())
        });
        result.unwrap_or_else(|e| panic!("{dir}: {e}"));
    }
}
