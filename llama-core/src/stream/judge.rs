//! [`Judge`]: asks the guards about one answer, window by window.
//!
//! A text that is continued is one text with its continuation, whether its prompt is echoed or not: a word that the prompt begins and the answer
//! ends is in neither of them alone. The prompt was judged on its way in, so that it counts as told.

use crate::Role;
use crate::safety::{Excerpt, Guards, HoldBack, Judgement, Prompt, Side};

/// Characters of a word at most: a script without spaces must not hold everything back.
const LONGEST_WORD: usize = 64;

/// The judge of one answer.
#[derive(Debug)]
pub(super) struct Judge {
    guards: Guards,
    before: Vec<crate::Message>,
    /// The prompt that the answer goes on from, if it does, and the answer as far as it was told.
    told: String,
    /// The bytes of that prompt.
    prompt_len: usize,
    /// Of the text that is held, the bytes that were judged,
    judged: usize,
    /// and those that may be told.
    free: usize,
}

impl Judge {
    /// `None` without guards.
    pub(super) fn new(guards: &Guards, prompt: &Prompt) -> Option<Self> {
        (!guards.is_empty()).then(|| Self {
            guards: guards.clone(),
            before: prompt.said.clone(),
            told: prompt.text.clone(),
            prompt_len: prompt.text.len(),
            judged: 0,
            free: 0,
        })
    }

    /// The answer begins behind so many spaces that are not told: they stand between the prompt and what goes on from it.
    pub(super) fn begins_behind(&mut self, n_spaces: usize) {
        if self.prompt_len > 0 {
            self.told.extend(std::iter::repeat_n(' ', n_spaces));
        }
    }

    /// How many bytes of what is held may be told.
    pub(super) fn free(&self) -> usize {
        self.free
    }

    /// How many bytes of what is held are to be judged now.
    pub(super) fn due(&self, held: &str) -> Option<usize> {
        let held = &held[..whole_words(held)];
        let new = held.get(self.judged..).filter(|new| !new.is_empty())?;
        match self.guards.hold_back {
            HoldBack::Answer => None,
            HoldBack::Sentence => sentences(new).map(|len| self.judged + len),
            HoldBack::Characters(n) => (new.chars().count() >= n).then_some(held.len()),
        }
    }

    /// Judges the answer with what is held behind what was told; gives what may stand in its place.
    pub(super) fn judge(&mut self, held: &str) -> Result<(String, Vec<Judgement>), Vec<Judgement>> {
        if held.len() == self.judged {
            return Ok((held.to_owned(), Vec::new())); // nothing was added, or nothing is there
        }
        let answer = [&self.told, held].concat();
        let Self { before, prompt_len, .. } = self;
        let (side, role) = (Side::Output, Role::Assistant);
        let excerpt = Excerpt { text: &answer, prompt_len: *prompt_len, side, role, before };
        let ruling = self.guards.rule(excerpt, self.told.len());
        // It begins with what was told.
        let Some(mut text) = ruling.text else { return Err(ruling.judgements) };
        text.drain(..self.told.len());
        self.judged = text.len();
        self.free = match self.guards.hold_back {
            HoldBack::Characters(n @ 1..) => text.char_indices().nth_back(n - 1).map_or(0, |(at, _)| at),
            _ => text.len(),
        };
        Ok((text, ruling.judgements))
    }

    /// The first of what is held was told.
    pub(super) fn told(&mut self, text: &str) {
        self.told.push_str(text);
        self.judged = self.judged.saturating_sub(text.len());
        self.free = self.free.saturating_sub(text.len());
    }
}

/// As much of a text as does not end within a word.
fn whole_words(text: &str) -> usize {
    let word = text.chars().rev().take_while(|c| c.is_alphanumeric());
    let (n, len) = word.fold((0, 0), |(n, len), c| (n + 1, len + c.len_utf8()));
    if n > LONGEST_WORD { text.len() } else { text.len() - len }
}

/// Whether no word goes on across this place.
pub(super) fn ends_a_word(text: &str, at: usize) -> bool {
    whole_words(&text[..at]) == at || !text[at..].starts_with(char::is_alphanumeric)
}

/// As much of a text as is whole sentences or lines; `None` where there is none.
fn sentences(text: &str) -> Option<usize> {
    let mut ends = None;
    let mut before = None;
    for (at, c) in text.char_indices() {
        let is_end = match c {
            '\n' | '。' | '！' | '？' => true,
            // The white space behind it tells a full stop from a decimal point.
            c => c.is_whitespace() && matches!(before, Some('.' | '!' | '?' | '…')),
        };
        if is_end {
            ends = Some(at + c.len_utf8());
        }
        if !matches!(c, '"' | '\'' | ')' | '”' | '’') {
            before = Some(c);
        }
    }
    ends
}
