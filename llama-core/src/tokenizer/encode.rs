//! Text to ids: SentencePiece's preparation of the text, then byte pair merges by the `tokenizers` crate.
//!
//! SentencePiece knows scores and no merges: of all neighbours whose joined text is a piece it joins those with the
//! highest score, the leftmost first. The crate ranks pairs instead, so the pairs and their order are derived from the
//! scores ([`merges_of_scores`]). Neither control nor byte pieces are in the crate's vocabulary but as the fallback of a
//! character, hence no text can become one. The text is one word to the crate (a merge may cross spaces), so its cache
//! of words is off.

use std::collections::HashSet;

use llama_backend::TokenId;
use tokenizers::Model as _;
use tokenizers::models::bpe::{BPE, Vocab as BpeVocab};

use super::TokenizerError;
use super::vocab::{Kind, Rules, SPACE, Vocab};

type Merges = Vec<(String, String)>;

pub(super) struct Encoder {
    bpe: BPE,
    /// Characters that occur in pieces without being one: they can merge, and are bytes where they have not. Their ids
    /// in `bpe` follow those of the vocabulary.
    lone: Vec<char>,
}

impl Encoder {
    /// An encoder for a vocabulary; the merges, if the file has none, follow from its scores.
    pub(super) fn new(vocab: &Vocab, merges: Option<Merges>) -> Result<Encoder, TokenizerError> {
        let (merges, lone) = match merges {
            Some(mut merges) => {
                let special: HashSet<&str> = vocab
                    .pieces
                    .iter()
                    .filter(|piece| piece.kind != Kind::Normal)
                    .map(|piece| piece.text.as_str())
                    .collect();
                // A merge that makes a control piece would let text pass for structure.
                merges.retain(|(left, right)| !special.contains([left.as_str(), right].concat().as_str()));
                // The crate panics where a merge makes more than the longest piece.
                for (left, right) in &merges {
                    for piece in [left, right, &[left.as_str(), right].concat()] {
                        if !vocab.normal.contains_key(piece.as_str()) {
                            let (left, right, piece) = (left.clone(), right.clone(), piece.clone());
                            return Err(TokenizerError::BadMerge { left, right, piece });
                        }
                    }
                }
                (merges, Vec::new())
            }
            None => {
                let lone = lone_characters(vocab);
                (merges_of_scores(vocab, &lone)?, lone)
            }
        };
        let mut entries: BpeVocab = vocab.normal.iter().map(|(text, &id)| (text.clone(), id)).collect();
        entries.extend(vocab.bytes.iter().map(|&id| (vocab.pieces[id.0 as usize].text.clone(), id.0)));
        for (id, &c) in (vocab.pieces.len()..).zip(&lone) {
            let id = u32::try_from(id)
                .map_err(|_| TokenizerError::BadPiece { id, problem: "has an id beyond 32 bits" })?;
            entries.insert(c.to_string(), id);
        }
        let bpe = BPE::builder()
            .vocab_and_merges(entries, merges)
            .byte_fallback(true)
            .cache_capacity(0)
            .build()
            .map_err(TokenizerError::Merges)?;
        Ok(Encoder { bpe, lone })
    }

    /// Appends the ids of a text.
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, ids: &mut Vec<TokenId>) {
        let text = normalize(text, &vocab.rules);
        // The crate errs only where an unknown token is set, and none is: each of the 256 bytes has a piece.
        let tokens = self.bpe.tokenize(&text).unwrap_or_default();
        ids.reserve(tokens.len());
        for token in tokens {
            match (token.id as usize).checked_sub(vocab.pieces.len()) {
                None => ids.push(TokenId(token.id)),
                Some(lone) => {
                    let mut utf8 = [0; 4];
                    let bytes = self.lone[lone].encode_utf8(&mut utf8).bytes();
                    ids.extend(bytes.map(|byte| vocab.bytes[usize::from(byte)]));
                }
            }
        }
    }
}

/// SentencePiece's `Normalizer::Normalize` for the identity map: what happens to spaces.
pub(super) fn normalize(text: &str, rules: &Rules) -> String {
    let space = if rules.escape_whitespaces { SPACE } else { ' ' };
    let text = if rules.remove_extra_whitespaces { text.trim_start_matches(' ') } else { text };
    if text.is_empty() {
        return String::new();
    }
    let mut normal = String::with_capacity(text.len() + text.len() / 2);
    if rules.add_dummy_prefix {
        normal.push(space);
    }
    let mut after_space = rules.remove_extra_whitespaces;
    for c in text.chars() {
        match c {
            ' ' if after_space => {}
            ' ' => {
                normal.push(space);
                after_space = rules.remove_extra_whitespaces;
            }
            c => {
                normal.push(c);
                after_space = false;
            }
        }
    }
    if rules.remove_extra_whitespaces {
        // Also a `▁` of the text itself, and the dummy prefix if nothing else is left, as SentencePiece does.
        normal.truncate(normal.trim_end_matches(space).len());
    }
    normal
}

/// Characters of normal pieces that are no normal piece themselves.
fn lone_characters(vocab: &Vocab) -> Vec<char> {
    let mut lone: Vec<char> = vocab.normal.keys().flat_map(|piece| piece.chars()).collect();
    lone.sort_unstable();
    lone.dedup();
    let mut utf8 = [0; 4];
    lone.retain(|c| !vocab.normal.contains_key(&*c.encode_utf8(&mut utf8)));
    lone
}

/// The merges, in the order in which SentencePiece would make them.
///
/// The pairs of a piece are its cuts into two parts that are pieces or single characters. The order is that of the
/// scores, with two differences between the crate and SentencePiece to be made good, since the crate cannot give two
/// pairs the same rank:
///
/// - Pieces of one score (in Llama 2 the runs of 2 to 16 spaces): SentencePiece takes the leftmost. In a run of one
///   character that lets the first piece grow to its full length before the second begins, which is what giving the
///   longest result the first rank does too. Pieces of one score that are not such runs are refused.
/// - Cuts of one piece: they can only be in each other's way where they overlap, left cut `x|y` and right cut `y|z` of
///   one text, so that it ends as it begins, with `y`. Such left cuts are ranked first.
///
/// `tests/tokenizer_laws.rs` holds the result against SentencePiece's rule said plainly, over vocabularies trained, real
/// and random.
fn merges_of_scores(vocab: &Vocab, lone: &[char]) -> Result<Merges, TokenizerError> {
    let lone: HashSet<char> = lone.iter().copied().collect();
    let is_part = |text: &str| {
        let mut chars = text.chars();
        vocab.normal.contains_key(text)
            || matches!((chars.next(), chars.next()), (Some(only), None) if lone.contains(&only))
    };
    let mut made: Vec<(f32, &str, Vec<usize>)> = Vec::with_capacity(vocab.normal.len());
    for (text, &id) in &vocab.normal {
        let mut cuts: Vec<usize> = (text.char_indices().skip(1))
            .map(|(at, _)| at)
            .filter(|&at| is_part(&text[..at]) && is_part(&text[at..]))
            .collect();
        if !cuts.is_empty() {
            cuts.sort_by_key(|&at| (!text.starts_with(&text[at..]), std::cmp::Reverse(at)));
            // Adding zero makes -0.0 the 0.0 that it equals.
            made.push((vocab.pieces[id as usize].score.unwrap_or(0.0) + 0.0, text, cuts));
        }
    }
    made.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.len().cmp(&a.1.len())).then(a.1.cmp(b.1)));
    for pair in made.windows(2) {
        let ((score, first, _), (other, second, _)) = (&pair[0], &pair[1]);
        if score == other && (run_of(first).is_none() || run_of(first) != run_of(second)) {
            return Err(TokenizerError::TiedScores {
                first: (*first).to_owned(),
                second: (*second).to_owned(),
                score: *score,
            });
        }
    }
    let pairs = made
        .iter()
        .flat_map(|(_, text, cuts)| cuts.iter().map(|&at| (text[..at].to_owned(), text[at..].to_owned())));
    Ok(pairs.collect())
}

/// The character of which a text is a run.
fn run_of(text: &str) -> Option<char> {
    let first = text.chars().next()?;
    text.chars().all(|c| c == first).then_some(first)
}
