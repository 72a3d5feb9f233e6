//! The release stage: what of an answer may be said already.
//!
//! Tokens go in one by one; text comes out in whole tokens, with the tokens that it is made of, so that no token, logprob or alternative is told
//! before its text. Held back are characters that are not complete, text that may turn out to be the beginning of a stop string, and text that
//! is not judged. Whoever else has to hold text back lowers [`Release::free`]: nothing leaves by another way.
//!
//! A stop string ends the answer where it is complete: of several, the one that ends first counts, and of those the longest. So the
//! answer does not depend on where tokens begin and end.

use std::collections::VecDeque;
use std::fmt;

use super::StreamToken;
use super::judge::{Judge, ends_a_word};
use crate::safety::Judgement;
use crate::tokenizer::{Detokenizer, Tokenizer, TokenizerError};

/// The tokens of one answer on their way out.
pub(super) struct Release {
    detokenizer: Detokenizer,
    stop: Vec<String>,
    /// Who judges the answer; `None`: nobody.
    judge: Option<Judge>,
    /// Text that was decoded and not released.
    held: String,
    /// Tokens that were not released, with where their text ends in `held`; `None` while a character is incomplete.
    tokens: VecDeque<(StreamToken, Option<usize>)>,
}

/// What may be said.
#[derive(Debug, Default)]
pub(super) struct Released {
    pub(super) text: String,
    /// The tokens that it is made of. Where a stop string has cut it, the last of it may be of a token that is missing here; so are tokens of
    /// text that a guard has replaced.
    pub(super) tokens: Vec<StreamToken>,
    /// What guards have found in what was held.
    pub(super) judgements: Vec<Judgement>,
    /// Whether, and why, the answer is complete.
    pub(super) end: Option<End>,
}

/// What ends an answer here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// A stop string came.
    StopString,
    /// A guard refused what follows.
    Guarded,
}

impl Release {
    pub(super) fn new(tokenizer: &Tokenizer, stop: Vec<String>, judge: Option<Judge>) -> Self {
        let detokenizer = tokenizer.detokenizer();
        Self { detokenizer, stop, judge, held: String::new(), tokens: VecDeque::new() }
    }

    /// Takes a token of an echoed prompt, in which no stop string is looked for, and which was judged on its way in.
    pub(super) fn echo(&mut self, token: StreamToken) -> Result<Released, TokenizerError> {
        self.decode(token)?;
        Ok(self.release(self.held.len()))
    }

    /// Takes a token of the answer.
    pub(super) fn push(&mut self, token: StreamToken) -> Result<Released, TokenizerError> {
        self.decode(token)?;
        if let Some(begin) = self.find_stop() {
            return Ok(self.end(begin, Some(End::StopString)));
        }
        let free = self.unstopped();
        let due = self.judge.as_ref().and_then(|judge| judge.due(&self.held[..free]));
        let judgements = match due.map(|due| self.judge_to(due)) {
            None => Vec::new(),
            Some(Ok((_, judgements))) => judgements,
            Some(Err(judgements)) => return Ok(self.refuse(judgements)),
        };
        let released = self.release(self.free());
        self.told(&released.text);
        Ok(Released { judgements, ..released })
    }

    /// The answer has ended: gives all that was held back.
    pub(super) fn finish(mut self) -> Released {
        self.held.push_str(&self.detokenizer.clone().finish());
        self.complete();
        match self.find_stop() {
            Some(begin) => self.end(begin, Some(End::StopString)),
            None => self.end(self.held.len(), None),
        }
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

    /// Where a stop string begins, if one is complete.
    fn find_stop(&self) -> Option<usize> {
        let found = self.stop.iter().filter_map(|stop| {
            let begin = self.held.find(stop)?;
            Some((begin + stop.len(), begin))
        });
        found.min().map(|(_, begin)| begin)
    }

    /// The answer ends with the first `len` bytes of what is held.
    fn end(&mut self, len: usize, end: Option<End>) -> Released {
        match self.judge_to(len) {
            Ok((len, judgements)) => {
                let mut released = self.release(len);
                released.text.push_str(&self.held[..len - released.text.len()]);
                Released { judgements, end, ..released }
            }
            Err(judgements) => self.refuse(judgements),
        }
    }

    /// How much of the text is no beginning of a stop string.
    fn unstopped(&self) -> usize {
        let held = self.held.as_bytes();
        let begun =
            |stop: &String| (1..stop.len()).rev().find(|&len| held.ends_with(&stop.as_bytes()[..len]));
        held.len() - self.stop.iter().filter_map(begun).max().unwrap_or(0)
    }

    /// How much of the text may be said. Where it is judged, whole words: the beginning of one may read as another.
    fn free(&self) -> usize {
        let unstopped = self.unstopped();
        let Some(judge) = &self.judge else { return unstopped };
        let free = unstopped.min(judge.free());
        let ends = self.tokens.iter().map_while(|(_, end)| *end).take_while(|&end| end <= free);
        ends.filter(|&end| ends_a_word(&self.held, end)).last().unwrap_or(0)
    }

    /// Has the answer judged as far as the first `len` bytes of what is held; gives how many there are then, since some may be replaced.
    fn judge_to(&mut self, len: usize) -> Result<(usize, Vec<Judgement>), Vec<Judgement>> {
        let Some(judge) = &mut self.judge else { return Ok((len, Vec::new())) };
        let (text, judgements) = judge.judge(&self.held[..len])?;
        let new_len = text.len();
        if let Some(change) = Change::between(&self.held[..len], &text) {
            self.held.replace_range(..len, &text);
            let mut begin = 0;
            self.tokens.retain_mut(|(_, end)| {
                let Some(at) = end else { return true };
                let is_before = *at <= change.begin;
                let is_behind = begin >= change.end;
                begin = *at;
                if !is_before {
                    *at = (*at + new_len).saturating_sub(len);
                }
                is_before || is_behind
            });
        }
        Ok((new_len, judgements))
    }

    /// Nothing of what is held is ever told.
    fn refuse(&mut self, judgements: Vec<Judgement>) -> Released {
        self.held.clear();
        self.tokens.clear();
        Released { judgements, end: Some(End::Guarded), ..Released::default() }
    }

    fn told(&mut self, text: &str) {
        if let Some(judge) = &mut self.judge {
            judge.told(text);
        }
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

impl fmt::Debug for Release {
    /// How much is held, and nothing of it: it may yet be refused.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Release");
        out.field("held_bytes", &self.held.len()).field("held_tokens", &self.tokens.len());
        out.field("stop", &self.stop).field("judge", &self.judge).finish()
    }
}

/// What differs in a text that takes another's place: `begin..end` of that other.
struct Change {
    begin: usize,
    end: usize,
}

impl Change {
    fn between(old: &str, new: &str) -> Option<Self> {
        let same = |(old, new): &(char, char)| old == new;
        let len = |(c, _): (char, char)| c.len_utf8();
        let begin: usize = old.chars().zip(new.chars()).take_while(same).map(len).sum();
        let behind: usize =
            old[begin..].chars().rev().zip(new[begin..].chars().rev()).take_while(same).map(len).sum();
        (old != new).then_some(Self { begin, end: old.len() - behind })
    }
}

#[cfg(test)]
mod tests {
    use llama_backend::TokenId;
    use proptest::prelude::*;

    use super::*;
    use crate::safety::{Excerpt, Guard, Guards, HoldBack, Prompt, Side, Verdict, WordList};

    fn tokenizer() -> Tokenizer {
        Tokenizer::from_bytes(include_bytes!("../../tests/fixtures/tokenizer.model")).unwrap()
    }

    fn token(tokenizer: &Tokenizer, id: u32) -> StreamToken {
        let text = tokenizer.decode_one(TokenId(id)).unwrap();
        StreamToken { id: TokenId(id), text, logprob: None, top_logprobs: Vec::new() }
    }

    /// Everything that comes out, piece by piece, and whether a stop string ended it.
    fn released(ids: &[u32], stop: &[&str]) -> (Vec<Released>, bool) {
        released_by(ids, stop, None)
    }

    fn released_by(ids: &[u32], stop: &[&str], judge: Option<Judge>) -> (Vec<Released>, bool) {
        let tokenizer = tokenizer();
        let mut release = Release::new(&tokenizer, stop.iter().copied().map(str::to_owned).collect(), judge);
        let mut all = Vec::new();
        for &id in ids {
            all.push(release.push(token(&tokenizer, id)).unwrap());
            if all.last().unwrap().end.is_some() {
                return (all, true);
            }
        }
        all.push(release.finish());
        let stopped = all.last().unwrap().end.is_some();
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
            let mut release = Release::new(&tokenizer, Vec::new(), None);
            for released in &all {
                let mut of_tokens = String::new();
                for token in &released.tokens {
                    of_tokens.push_str(&release.push(token.clone()).unwrap().text);
                }
                prop_assert!(released.text.starts_with(&of_tokens), "{:?}: {:?}", of_tokens, released);
                prop_assert!(released.end.is_some() || released.text == of_tokens, "{:?}: {:?}", of_tokens, released);
            }
        }

        /// However the text is cut into tokens and windows: an answer is refused where, told whole, it would be; at no time is anything told that a
        /// guard refuses; and what nobody refuses is told to the character.
        #[test]
        fn nothing_that_a_guard_refuses_is_released(
            words in prop::collection::vec(prop_oneof!["[abcA. ]{1,4}", "a\u{200b}?bc", "[ａb]c", Just("日本\n".to_owned())], 1..14),
            stop in prop::collection::vec("[abc ]{1,3}", 0..2),
            hold_back in hold_back(),
        ) {
            let list: WordList = "abc\na b\n/c[.]a/\nB".parse().unwrap();
            let refuses = |text: &str| allows(&list, text).is_none();
            let tokenizer = tokenizer();
            let ids: Vec<u32> = words.iter().flat_map(|word| tokenizer.encode(word)).map(|id| id.0).collect();
            let said = tokenizer.decode(&ids.iter().copied().map(TokenId).collect::<Vec<_>>()).unwrap();
            let stop: Vec<&str> = stop.iter().map(String::as_str).collect();
            let (whole, _) = plain(&said, &stop);
            let (all, _) = guarded(&ids, &stop, list.clone(), hold_back);
            let mut told = String::new();
            let mut tokens = Release::new(&tokenizer, Vec::new(), None);
            for released in &all {
                told.push_str(&released.text);
                prop_assert!(!refuses(&told), "{told:?}");
                let mut of_tokens = String::new();
                for token in &released.tokens {
                    of_tokens.push_str(&tokens.push(token.clone()).unwrap().text);
                }
                prop_assert!(released.text.starts_with(&of_tokens), "{of_tokens:?}: {released:?}");
            }
            let is_refused = all.last().unwrap().end == Some(End::Guarded);
            prop_assert_eq!(is_refused, refuses(&whole), "{:?}", whole);
            prop_assert!(whole.starts_with(&told), "{told:?}");
            prop_assert!(is_refused || told == whole, "{told:?}");
            prop_assert!(!is_refused || all.last().unwrap().tokens.is_empty());
        }

        /// What is replaced comes out as if the whole had been replaced at once, or, told too early, not at all.
        #[test]
        fn what_is_replaced_is_never_released(
            words in prop::collection::vec(prop_oneof!["[abc ]{1,4}", Just("abc".to_owned()), Just(" ".to_owned())], 1..14),
            hold_back in hold_back(),
        ) {
            let list: WordList = "abc\na b".parse().unwrap();
            let tokenizer = tokenizer();
            let ids: Vec<u32> = words.iter().flat_map(|word| tokenizer.encode(word)).map(|id| id.0).collect();
            let said = tokenizer.decode(&ids.iter().copied().map(TokenId).collect::<Vec<_>>()).unwrap();
            let (all, _) = guarded(&ids, &[], list.clone().replacing_with("***"), hold_back);
            let expected = allows(&list.clone().replacing_with("***"), &said).unwrap();
            let told = text(&all);
            let is_refused = all.last().unwrap().end == Some(End::Guarded);
            prop_assert!(allows(&list, &told).is_some(), "{told:?}");
            prop_assert!(is_refused || told == expected, "{told:?}, {expected:?}");
            let holds_a_word = match hold_back { HoldBack::Characters(n) => n >= 3, _ => true };
            prop_assert!(!is_refused || !holds_a_word || said.contains("  "), "{told:?} of {said:?}");
        }
    }

    fn hold_back() -> impl Strategy<Value = HoldBack> {
        prop_oneof![
            Just(HoldBack::Sentence),
            Just(HoldBack::Answer),
            (0usize..12).prop_map(HoldBack::Characters)
        ]
    }

    /// What a guard makes of a whole text.
    fn allows(guard: &WordList, text: &str) -> Option<String> {
        let excerpt = Excerpt { text, side: Side::Output, role: crate::Role::Assistant, before: &[] };
        match guard.judge(&excerpt).unwrap() {
            Verdict::Allow => Some(text.to_owned()),
            Verdict::Replace { text, .. } => Some(text),
            Verdict::Refuse(_) => None,
        }
    }

    fn guarded(ids: &[u32], stop: &[&str], guard: WordList, hold_back: HoldBack) -> (Vec<Released>, bool) {
        let mut guards = Guards::default();
        guards.push(std::sync::Arc::new(guard));
        guards.hold_back = hold_back;
        released_by(ids, stop, Judge::new(&guards, &Prompt::tokens(Vec::new())))
    }

    #[test]
    fn the_tokens_of_what_was_replaced_are_dropped_and_the_others_kept() {
        let tokenizer = tokenizer();
        let ids: Vec<u32> = ["a ", "abc", " ", "c. ", "b"]
            .iter()
            .flat_map(|word| tokenizer.encode(word))
            .map(|id| id.0)
            .collect();
        let texts = |all: &[Released]| -> Vec<String> {
            all.iter()
                .flat_map(|released| &released.tokens)
                .map(|token| token.text.trim().to_owned())
                .collect()
        };
        let (plain, _) = released(&ids, &[]);
        let list: WordList = "abc".parse().unwrap();
        let (all, _) = guarded(&ids, &[], list.replacing_with("***"), HoldBack::Sentence);
        assert_eq!(text(&all), text(&plain).replace("abc", "***"));
        let (kept, said) = (texts(&all).concat(), texts(&plain).concat());
        assert!(said.contains("abc") && !kept.contains("abc"), "{said}, {kept}");
        assert_eq!(kept, said.replace("abc", ""));
        assert_eq!(all.iter().map(|released| released.judgements.len()).sum::<usize>(), 1);
    }
}
