//! The release stage: what of an answer may be said already.
//!
//! Tokens go in one by one; text comes out in whole tokens, with the tokens that it is made of, so that no token, logprob or alternative is told
//! before its text. Held back are characters that are not complete, and text that may turn out to be the beginning of a stop string. Whoever
//! else has to hold text back lowers [`Release::free`]: nothing leaves by another way.
//!
//! A stop string ends the answer where it is complete: of several, the one that ends first counts, and of those the longest. So the
//! answer does not depend on where tokens begin and end.

use std::collections::VecDeque;

use super::StreamToken;
use crate::tokenizer::{Detokenizer, Tokenizer, TokenizerError};

/// The tokens of one answer on their way out.
#[derive(Debug)]
pub(super) struct Release {
    detokenizer: Detokenizer,
    stop: Vec<String>,
    /// Text that was decoded and not released.
    held: String,
    /// Tokens that were not released, with where their text ends in `held`; `None` while a character is incomplete.
    tokens: VecDeque<(StreamToken, Option<usize>)>,
}

/// What may be said.
#[derive(Debug, Default)]
pub(super) struct Released {
    pub(super) text: String,
    /// The tokens that it is made of. Where a stop string has cut it, the last of it may be of a token that is missing here.
    pub(super) tokens: Vec<StreamToken>,
    /// Whether a stop string came: the answer is complete.
    pub(super) stopped: bool,
}

impl Release {
    pub(super) fn new(tokenizer: &Tokenizer, stop: Vec<String>) -> Self {
        Self { detokenizer: tokenizer.detokenizer(), stop, held: String::new(), tokens: VecDeque::new() }
    }

    /// Takes a token of an echoed prompt, in which no stop string is looked for.
    pub(super) fn echo(&mut self, token: StreamToken) -> Result<Released, TokenizerError> {
        self.decode(token)?;
        Ok(self.release(self.held.len()))
    }

    /// Takes a token of the answer.
    pub(super) fn push(&mut self, token: StreamToken) -> Result<Released, TokenizerError> {
        self.decode(token)?;
        Ok(self.cut().unwrap_or_else(|| self.release(self.free())))
    }

    /// The answer has ended: gives all that was held back.
    pub(super) fn finish(mut self) -> Released {
        self.held.push_str(&self.detokenizer.clone().finish());
        self.complete();
        self.cut().unwrap_or_else(|| self.release(self.held.len()))
    }

    fn decode(&mut self, token: StreamToken) -> Result<(), TokenizerError> {
        self.held.push_str(&self.detokenizer.push(token.id)?);
        self.tokens.push_back((token, None));
        if !self.detokenizer.is_incomplete() {
            self.complete();
        }
        Ok(())
    }

    /// All that was decoded is whole characters.
    fn complete(&mut self) {
        let end = self.held.len();
        self.tokens.iter_mut().for_each(|(_, at)| _ = at.get_or_insert(end));
    }

    /// Releases what stands before a stop string, if one is complete.
    fn cut(&mut self) -> Option<Released> {
        let found = self.stop.iter().filter_map(|stop| {
            let begin = self.held.find(stop)?;
            Some((begin + stop.len(), begin))
        });
        let (_, begin) = found.min()?;
        let mut released = self.release(begin);
        released.text.push_str(&self.held[..begin - released.text.len()]);
        released.stopped = true;
        Some(released)
    }

    /// How much of the text may be said: all that is no beginning of a stop string.
    fn free(&self) -> usize {
        let held = self.held.as_bytes();
        let begun =
            |stop: &String| (1..stop.len()).rev().find(|&len| held.ends_with(&stop.as_bytes()[..len]));
        held.len() - self.stop.iter().filter_map(begun).max().unwrap_or(0)
    }

    /// Releases the tokens whose text ends within the first `free` bytes, and their text.
    fn release(&mut self, free: usize) -> Released {
        let is_free = |(_, end): &(StreamToken, Option<usize>)| end.is_some_and(|end| end <= free);
        let n_free = self.tokens.iter().take_while(|token| is_free(token)).count();
        let mut released = Released::default();
        let mut len = 0;
        for (token, end) in self.tokens.drain(..n_free) {
            released.tokens.push(token);
            len = end.unwrap_or(len);
        }
        released.text = self.held.drain(..len).collect();
        self.tokens.iter_mut().for_each(|(_, end)| *end = end.map(|end| end - len));
        released
    }
}

#[cfg(test)]
mod tests {
    use llama_backend::TokenId;
    use proptest::prelude::*;

    use super::*;

    fn tokenizer() -> Tokenizer {
        Tokenizer::from_bytes(include_bytes!("../../tests/fixtures/tokenizer.model")).unwrap()
    }

    fn token(tokenizer: &Tokenizer, id: u32) -> StreamToken {
        let text = tokenizer.decode_one(TokenId(id)).unwrap();
        StreamToken { id: TokenId(id), text, logprob: None, top_logprobs: Vec::new() }
    }

    /// Everything that comes out, piece by piece, and whether a stop string ended it.
    fn released(ids: &[u32], stop: &[&str]) -> (Vec<Released>, bool) {
        let tokenizer = tokenizer();
        let mut release = Release::new(&tokenizer, stop.iter().copied().map(str::to_owned).collect());
        let mut all = Vec::new();
        for &id in ids {
            all.push(release.push(token(&tokenizer, id)).unwrap());
            if all.last().unwrap().stopped {
                return (all, true);
            }
        }
        all.push(release.finish());
        let stopped = all.last().unwrap().stopped;
        (all, stopped)
    }

    fn text(all: &[Released]) -> String {
        all.iter().map(|released| &*released.text).collect()
    }

    /// The rule as it is said: cut where the stop string that is complete first begins.
    fn plain(text: &str, stop: &[&str]) -> (String, bool) {
        for (end, _) in text.char_indices().map(|(at, c)| (at + c.len_utf8(), c)) {
            let complete =
                stop.iter().filter(|stop| text[..end].ends_with(**stop)).max_by_key(|stop| stop.len());
            if let Some(stop) = complete {
                return (text[..end - stop.len()].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    #[test]
    fn tokens_come_with_their_text_and_not_before() {
        // "😀" is four bytes.
        let (all, _) = released(&[243, 162, 155, 131], &[]);
        let counts: Vec<_> = all.iter().map(|released| (&*released.text, released.tokens.len())).collect();
        assert_eq!(counts, [("", 0), ("", 0), ("", 0), ("😀", 4), ("", 0)]);
        let tokenizer = tokenizer();
        let ids: Vec<u32> = tokenizer.encode("ab abc").iter().map(|id| id.0).collect();
        let (all, stopped) = released(&ids, &["abcd"]);
        assert!(!stopped);
        assert_eq!(text(&all), "ab abc");
        let (last, before) = all.split_last().unwrap();
        assert!(
            text(before).len() <= "ab ".len(),
            "what may be a stop string's beginning is held: {before:?}"
        );
        assert!(last.text.ends_with("abc") && !last.tokens.is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

        /// However the text is cut into tokens: it ends where the rule says, no part of a stop string comes out, and the text of the
        /// tokens that come with a piece is that piece.
        #[test]
        fn a_stop_string_ends_the_answer_wherever_tokens_begin_and_end(
            words in prop::collection::vec(prop_oneof!["[abc ]{1,4}", Just("日本".to_owned()), Just("😀".to_owned())], 1..12),
            stop in prop::collection::vec(prop_oneof!["[abc ]{1,4}", Just("本a".to_owned()), Just("😀".to_owned())], 0..3),
            by_piece in any::<bool>(),
        ) {
            let tokenizer = tokenizer();
            let whole = words.concat();
            // In one go, or piece by piece: other tokens for much the same text.
            let ids: Vec<u32> = match by_piece {
                true => words.iter().flat_map(|word| tokenizer.encode(word)).map(|id| id.0).collect(),
                false => tokenizer.encode(&whole).iter().map(|id| id.0).collect(),
            };
            let said = tokenizer.decode(&ids.iter().copied().map(TokenId).collect::<Vec<_>>()).unwrap();
            let stop: Vec<&str> = stop.iter().map(String::as_str).collect();
            let (all, stopped) = released(&ids, &stop);
            prop_assert_eq!((text(&all), stopped), plain(&said, &stop));
            let mut release = Release::new(&tokenizer, Vec::new());
            for released in &all {
                let mut of_tokens = String::new();
                for token in &released.tokens {
                    of_tokens.push_str(&release.push(token.clone()).unwrap().text);
                }
                prop_assert!(released.text.starts_with(&of_tokens), "{:?}: {:?}", of_tokens, released);
                prop_assert!(released.stopped || released.text == of_tokens, "{:?}: {:?}", of_tokens, released);
            }
        }
    }
}
