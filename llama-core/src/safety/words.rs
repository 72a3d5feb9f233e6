//! [`WordList`]: the guard of words and patterns from a file.
//!
//! Both sides are compared in their normal form ([`Normal`]), and what is found is replaced where it stands.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use aho_corasick::AhoCorasick;
use regex::Regex;

use super::normal::Normal;
use super::{Excerpt, Finding, Guard, GuardError, Verdict};

/// Refuses, or replaces, texts with one of a list of words, phrases and patterns.
///
/// One entry a line; `#` begins a comment line, `[name]` the category of the entries below it.
///
/// ```
/// use llama_core::WordList;
///
/// let list: WordList = "
///     [weapons]
///     nerve gas
///     [card numbers]
///     /\\b(?:[0-9]{4} ?){4}\\b/
/// ".parse()?;
/// # Ok::<(), llama_core::WordListError>(())
/// ```
///
/// Words and phrases are found as whole words, whatever their case, full-width or styled letters, and characters without width in them.
/// A pattern stands between slashes (the syntax of the crate `regex`), and is looked for, whatever the case, in the text as it is and in its normal form
/// (NFKD, lower case). `$` matches where a window of an answer ends, which is not for a pattern to know: patterns do without.
#[derive(Debug, Clone)]
pub struct WordList {
    words: AhoCorasick,
    /// For each word its entry.
    word_entries: Vec<Entry>,
    patterns: Vec<(Regex, Entry)>,
    replacement: Option<String>,
}

#[derive(Debug, Clone)]
struct Entry {
    category: String,
    line: usize,
}

/// Why a word list could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WordListError {
    /// The file could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A pattern that is none.
    #[error("line {line}: {source}")]
    Pattern {
        /// Its line, from 1.
        line: usize,
        /// Why.
        source: Box<regex::Error>,
    },
    /// An entry that is found in every text.
    #[error("line {line}: the entry matches the empty text, so that no text would pass")]
    MatchesEverything {
        /// Its line, from 1.
        line: usize,
    },
    /// More words than one list takes.
    #[error("the words are too many for one list: {0}")]
    TooLarge(Box<aho_corasick::BuildError>),
}

impl WordList {
    /// Reads a list from a file in UTF-8.
    ///
    /// # Errors
    ///
    /// [`WordListError::Io`], and what parsing says.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, WordListError> {
        let path = path.as_ref();
        let text =
            fs::read_to_string(path).map_err(|source| WordListError::Io { path: path.to_owned(), source })?;
        text.parse()
    }

    /// The same list, putting this in the place of what it finds instead of refusing. What is found across a window that was told already is refused.
    #[must_use]
    pub fn replacing_with(mut self, replacement: impl Into<String>) -> Self {
        self.replacement = Some(replacement.into());
        self
    }

    /// Where in the text entries are, in the order of their beginnings.
    fn find(&self, text: &str) -> Vec<(Range<usize>, &Entry)> {
        let normal = Normal::of(text);
        let mut found: Vec<_> = self
            .words
            .find_overlapping_iter(&normal.text)
            .filter(|word| is_whole(&normal.text, word.range()))
            .map(|word| (normal.original(word.range()), &self.word_entries[word.pattern().as_usize()])) // as many as words
            .collect();
        for (pattern, entry) in &self.patterns {
            found.extend(pattern.find_iter(text).map(|found| (found.range(), entry)));
            let in_normal = pattern.find_iter(&normal.text).map(|found| normal.original(found.range()));
            found.extend(in_normal.map(|range| (range, entry)));
        }
        found.sort_by_key(|(range, _)| (range.start, range.end));
        found
    }
}

impl std::str::FromStr for WordList {
    type Err = WordListError;

    fn from_str(list: &str) -> Result<Self, WordListError> {
        let mut category = String::new();
        let (mut words, mut word_entries, mut patterns) = (Vec::new(), Vec::new(), Vec::new());
        for (line, text) in (1..).zip(list.trim_start_matches('\u{feff}').lines()) {
            let text = text.trim();
            let entry = || Entry { category: category.clone(), line };
            if text.is_empty() || text.starts_with('#') {
                continue;
            } else if let Some(name) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
                category = name.trim().to_owned();
            } else if let Some(pattern) = text.strip_prefix('/').and_then(|text| text.strip_suffix('/')) {
                let pattern = Regex::new(&format!("(?i:{pattern})"))
                    .map_err(|source| WordListError::Pattern { line, source: Box::new(source) })?;
                if pattern.is_match("") {
                    return Err(WordListError::MatchesEverything { line });
                }
                patterns.push((pattern, entry()));
            } else {
                let word = Normal::of(text).text;
                if word.trim().is_empty() {
                    return Err(WordListError::MatchesEverything { line });
                }
                words.push(word);
                word_entries.push(entry());
            }
        }
        let words = AhoCorasick::new(&words).map_err(|error| WordListError::TooLarge(Box::new(error)))?;
        Ok(Self { words, word_entries, patterns, replacement: None })
    }
}

impl Guard for WordList {
    fn judge(&self, excerpt: &Excerpt<'_>) -> Result<Verdict, GuardError> {
        let found = self.find(excerpt.text);
        let Some((_, Entry { category, line })) = found.first() else { return Ok(Verdict::Allow) };
        let category = category.clone();
        let reason = format!("the entry on line {line} of the word list");
        let Some(replacement) = &self.replacement else {
            return Ok(Verdict::Refuse(Finding { category, reason }));
        };
        let mut text = String::new();
        let mut end = 0;
        for (range, _) in &found {
            if range.start >= end {
                text.push_str(&excerpt.text[end..range.start]);
                text.push_str(replacement);
            }
            end = end.max(range.end);
        }
        text.push_str(&excerpt.text[end..]);
        Ok(Verdict::Replace { text, finding: Finding { category, reason } })
    }
}

/// Whether no word goes on across its ends.
fn is_whole(text: &str, word: Range<usize>) -> bool {
    let goes_on = |a: Option<char>, b: Option<char>| {
        a.zip(b).is_some_and(|(a, b)| a.is_alphanumeric() && b.is_alphanumeric())
    };
    let (before, found, behind) = (&text[..word.start], &text[word.clone()], &text[word.end..]);
    !goes_on(before.chars().next_back(), found.chars().next())
        && !goes_on(found.chars().next_back(), behind.chars().next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_finds_what_a_reader_would_read() {
        let list: WordList =
            "# a comment\n[weapons]\nnerve  gas\nGun\n[numbers]\n/[0-9]{3}-[0-9]{2}/".parse().unwrap();
        let found = |text: &str| {
            let found = list.find(text);
            found
                .first()
                .map(|(range, entry)| (text[range.clone()].to_owned(), entry.category.clone(), entry.line))
        };
        let weapon = |text: &str, line| Some((text.to_owned(), "weapons".to_owned(), line));
        assert_eq!(found("a GUN."), weapon("GUN", 4));
        assert_eq!(found("Nerve\n\tGas"), weapon("Nerve\n\tGas", 3));
        assert_eq!(found("nerve▁gas"), weapon("nerve▁gas", 3));
        assert_eq!(found("a ｇｕｎ"), weapon("ｇｕｎ", 4));
        assert_eq!(found("a 𝐠𝐮𝐧!"), weapon("𝐠𝐮𝐧", 4));
        assert_eq!(found("g\u{200b}u\u{ad}n"), weapon("g\u{200b}u\u{ad}n", 4));
        assert_eq!(found("12 ０１２-34"), Some(("０１２-34".to_owned(), "numbers".to_owned(), 6)));
        for text in ["begun", "gunny", "nervegas", "12-34", ""] {
            assert_eq!(found(text), None, "{text}");
        }
    }

    #[test]
    fn a_list_that_is_none_is_an_error_that_names_the_line() {
        let error = |list: &str| list.parse::<WordList>().unwrap_err();
        assert!(matches!(error("a\n/(/"), WordListError::Pattern { line: 2, .. }));
        assert!(matches!(error("/x*/"), WordListError::MatchesEverything { line: 1 }));
        assert!(matches!(error("\u{200b}"), WordListError::MatchesEverything { line: 1 }));
        assert!(matches!(WordList::open("/nowhere"), Err(WordListError::Io { .. })));
    }
}
