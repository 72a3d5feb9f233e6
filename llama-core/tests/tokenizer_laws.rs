//! The tokenizer against SentencePiece said plainly, over random vocabularies, texts and ids.

mod golden;
mod sentencepiece;

use std::time::{Duration, Instant};

use golden::{Golden, data};
use llama_backend::TokenId;
use llama_core::tokenizer::{Tokenizer, TokenizerError};
use proptest::prelude::*;
use sentencepiece::{CONTROL, Model};

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
    ("[ab▁]{30,80}", 2..25usize, 0..6usize).prop_map(|(corpus, merges, spaces)| {
        let mut symbols: Vec<String> = corpus.chars().map(String::from).collect();
        let mut learned: Vec<String> = Vec::new();
        while learned.len() < merges {
            let mut counts = std::collections::BTreeMap::new();
            for pair in symbols.windows(2) {
                *counts.entry(pair.concat()).or_insert(0) += 1;
            }
            learned.iter().for_each(|piece| drop(counts.remove(piece)));
            let Some((best, _)) = counts.into_iter().max_by_key(|&(_, n)| n) else { break };
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn encodes_as_sentencepiece(model in trained(), texts in prop::collection::vec("[ab ▁c<s>]{0,40}", 8)) {
        let tokenizer = open(&model);
        for text in texts {
            let expected = sentencepiece::encode(&model.pieces, &prepared(&text));
            prop_assert_eq!(numbers(&tokenizer.encode(&text)), expected, "{:?} by {:?}", text, &model.pieces[259..]);
        }
    }
}

#[test]
fn real_fuzz() {
    for dir in ["llama2-tokenizer", "stories260K"] {
        let Some(path) = data(&format!("{dir}/tokenizer.model")) else { return };
        let tokenizer = Tokenizer::open(path).unwrap();
        let pieces = pieces(&tokenizer);
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let _ = runner.run(&prop::collection::vec(259..tokenizer.vocab_size(), 1..12), |ids| {
            let text: String = ids.iter().map(|&id| pieces[id].0.as_str()).collect();
            let expected = sentencepiece::encode(&pieces, &prepared(&text));
            prop_assert_eq!(numbers(&tokenizer.encode(&text)), expected, "{:?}", text);
            Ok(())
        }).unwrap();
    }
}
