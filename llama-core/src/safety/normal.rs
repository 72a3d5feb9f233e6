//! [`Normal`]: a text as guards compare it.
//!
//! The decision: text is compared as a reader sees it, not as it is coded. It loses case, compatibility forms (full-width and styled
//! letters) and characters without width, and white space is one space, as is `▁`, which the model reads as one; letters of another script that look alike stay what they are. The normal form is
//! made character by character, so that what is found can be replaced where it stands.

use std::ops::Range;

use unicode_normalization::char::decompose_compatible;

/// A text in its normal form.
pub(super) struct Normal {
    pub(super) text: String,
    /// For each byte of it, the character of the original that it is of.
    origin: Vec<Range<usize>>,
}

impl Normal {
    pub(super) fn of(original: &str) -> Self {
        let mut normal = Self { text: String::new(), origin: Vec::new() };
        for (at, c) in original.char_indices().filter(|(_, c)| !has_no_width(*c)) {
            let origin = at..at + c.len_utf8();
            decompose_compatible(c, |c| c.to_lowercase().for_each(|c| normal.push(c, origin.clone())));
        }
        normal
    }

    fn push(&mut self, c: char, origin: Range<usize>) {
        let c = if c.is_whitespace() || c == '▁' { ' ' } else { c };
        if has_no_width(c) || (c == ' ' && self.text.ends_with(' ')) {
            return;
        }
        self.text.push(c);
        self.origin.resize(self.text.len(), origin);
    }

    /// Where a part of it, which is not empty, stands in the original.
    pub(super) fn original(&self, part: Range<usize>) -> Range<usize> {
        let part = &self.origin[part];
        match (part.first(), part.last()) {
            (Some(first), Some(last)) => first.start..last.end,
            _ => 0..0,
        }
    }
}

/// Whether a character is not seen: Unicode's `Default_Ignorable_Code_Point`.
fn has_no_width(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fff8}'
        | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}
