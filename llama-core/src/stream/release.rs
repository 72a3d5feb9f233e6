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

    /// Takes the prompt that is echoed, in which no stop string is looked for, and which was judged on its way in: what is judged begins with it
    /// ([`Judge`]).
    pub(super) fn echo(&mut self, prompt: Vec<StreamToken>) -> Result<Released, TokenizerError> {
        for token in prompt {
            self.decode(token)?;
        }
        Ok(self.release(self.held.len()))
    }

    /// Takes a token of the answer.
    pub(super) fn push(&mut self, token: StreamToken) -> Result<Released, TokenizerError> {
        let n_spaces = self.decode(token)?;
        if let Some(judge) = &mut self.judge {
            judge.begins_behind(n_spaces);
        }
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

    /// Gives how many spaces before the text's first word were dropped with this token.
    fn decode(&mut self, token: StreamToken) -> Result<usize, TokenizerError> {
        let dropped = self.detokenizer.dropped_spaces();
        self.held.push_str(&self.detokenizer.push(token.id)?);
        self.tokens.push_back((token, None));
        if !self.detokenizer.is_incomplete() {
            self.complete();
        }
        Ok(self.detokenizer.dropped_spaces() - dropped)
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
mod tests;
