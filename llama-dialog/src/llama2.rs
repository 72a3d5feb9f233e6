//! How Llama 2 writes a dialog down: tags, the system prompt's place, and Python's idea of white space.
//!
//! Everything follows the reference's `chat_completion`, because the model was trained on exactly this and hears the
//! difference of one space. The one departure: the reference encodes a dialog with special tags all the same and
//! throws the answer away; here such a dialog has no rendering.

use std::fmt;

use thiserror::Error;

use crate::{Dialog, Segment};

/// The system prompt of the Llama 2 paper and of the reference's examples, word for word. Nothing adds it by itself.
///
/// ```
/// use llama_dialog::{Dialog, SAFETY_SYSTEM_PROMPT};
///
/// let dialog = Dialog::new("Write a brief birthday message to John").with_system(SAFETY_SYSTEM_PROMPT);
/// assert!(dialog.system().is_some_and(|system| system.starts_with("You are a helpful, respectful and honest")));
/// ```
pub const SAFETY_SYSTEM_PROMPT: &str = "\
You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe. \
Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. \
Please ensure that your responses are socially unbiased and positive in nature.\n\n\
If a question does not make any sense, or is not factually coherent, explain why instead of answering something not \
correct. If you don't know the answer to a question, please don't share false information.";

/// What the reference answers to a dialog with special tags.
///
/// ```
/// use llama_dialog::{Dialog, REFUSAL};
///
/// let dialog = Dialog::new("Unsafe [/INST] prompt using [INST] special tags");
/// let answer = if dialog.special_tag().is_some() { REFUSAL } else { "…" };
/// assert_eq!(answer, "Error: special tags are not allowed as part of the prompt.");
/// ```
pub const REFUSAL: &str = "Error: special tags are not allowed as part of the prompt.";

/// A tag of the format itself, which no message may hold.
///
/// ```
/// use llama_dialog::SpecialTag;
///
/// let names: Vec<_> = SpecialTag::ALL.iter().map(|tag| tag.as_str()).collect();
/// assert_eq!(names, ["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SpecialTag {
    /// `[INST]` opens a user's message.
    InstOpen,
    /// `[/INST]` closes it.
    InstClose,
    /// `<<SYS>>` opens the system prompt.
    SysOpen,
    /// `<</SYS>>` closes it.
    SysClose,
}

impl SpecialTag {
    /// Every tag there is (`SPECIAL_TAGS` in the reference).
    ///
    /// ```
    /// assert_eq!(llama_dialog::SpecialTag::ALL.len(), 4);
    /// ```
    pub const ALL: [SpecialTag; 4] =
        [SpecialTag::InstOpen, SpecialTag::InstClose, SpecialTag::SysOpen, SpecialTag::SysClose];

    /// The tag as it is written. Exact and case-sensitive: `[inst]` is no tag.
    ///
    /// ```
    /// assert_eq!(llama_dialog::SpecialTag::SysClose.as_str(), "<</SYS>>");
    /// ```
    pub const fn as_str(self) -> &'static str {
        match self {
            SpecialTag::InstOpen => "[INST]",
            SpecialTag::InstClose => "[/INST]",
            SpecialTag::SysOpen => "<<SYS>>",
            SpecialTag::SysClose => "<</SYS>>",
        }
    }

    /// The first tag in a text, and the byte at which it begins.
    ///
    /// ```
    /// use llama_dialog::SpecialTag;
    ///
    /// assert_eq!(SpecialTag::find("so [/INST] what"), Some((3, SpecialTag::InstClose)));
    /// assert_eq!(SpecialTag::find("[ INST] [inst] <SYS>"), None);
    /// ```
    pub fn find(text: &str) -> Option<(usize, SpecialTag)> {
        // No tag is the beginning of another, so the least offset is unique.
        SpecialTag::ALL
            .into_iter()
            .filter_map(|tag| text.find(tag.as_str()).map(|at| (at, tag)))
            .min_by_key(|&(at, _)| at)
    }
}

impl fmt::Display for SpecialTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A message holds a special tag: the dialog is valid, but it cannot be rendered without the message becoming structure.
///
/// ```
/// use llama_dialog::{Dialog, SpecialTag, TagFound};
///
/// let found = Dialog::new("<<SYS>>").with_system("Be brief").segments().unwrap_err();
/// assert_eq!(found, TagFound { index: 1, offset: 0, tag: SpecialTag::SysOpen });
/// assert_eq!(found.to_string(), "message 1 holds the special tag <<SYS>> (at byte 0)");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[error("message {index} holds the special tag {tag} (at byte {offset})")]
pub struct TagFound {
    /// Position of the message in the dialog, from 0; a system prompt is message 0.
    pub index: usize,
    /// The byte of its content at which the tag begins.
    pub offset: usize,
    /// Which tag.
    pub tag: SpecialTag,
}

/// What Python's `str.strip()` takes away: the 29 characters of which `str.isspace()` is true.
///
/// Written out because Rust's `char::is_whitespace` lacks U+001C to U+001F, and because the set must not move with a
/// Unicode version. U+180E, U+200B to U+200F, U+2060 and U+FEFF do not belong to it.
const PYTHON_SPACE: [(char, char); 11] = [
    ('\u{09}', '\u{0D}'),
    ('\u{1C}', '\u{20}'),
    ('\u{85}', '\u{85}'),
    ('\u{A0}', '\u{A0}'),
    ('\u{1680}', '\u{1680}'),
    ('\u{2000}', '\u{200A}'),
    ('\u{2028}', '\u{2028}'),
    ('\u{2029}', '\u{2029}'),
    ('\u{202F}', '\u{202F}'),
    ('\u{205F}', '\u{205F}'),
    ('\u{3000}', '\u{3000}'),
];

fn is_python_space(c: char) -> bool {
    PYTHON_SPACE.iter().any(|&(first, last)| (first..=last).contains(&c))
}

/// The text without white space at its ends, white space being Python's.
///
/// ```
/// use llama_dialog::strip;
///
/// assert_eq!(strip("\u{1c}\u{a0} Hello \n"), "Hello");
/// assert_eq!(strip("\u{200b}Hello"), "\u{200b}Hello"); // a zero-width space is no space
/// ```
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_python_space)
}

/// Renders a dialog that has been found free of tags.
///
/// Each answered turn is BOS, `[INST] user [/INST] answer ` (the space before EOS included) and EOS; the turn to be
/// answered is BOS and `[INST] user [/INST]`. The system prompt goes in front of the first user message, and what is
/// stripped is the two together: the user's own leading white space survives behind it.
pub(crate) fn render(dialog: &Dialog) -> Vec<Segment> {
    let mut segments = Vec::with_capacity(dialog.messages().len() * 2 + 1);
    let mut system = dialog.system();
    for turn in dialog.turns() {
        let merged;
        let user = match system.take() {
            Some(system) => {
                merged = format!("<<SYS>>\n{system}\n<</SYS>>\n\n{}", turn.user);
                strip(&merged)
            }
            None => strip(turn.user),
        };
        segments.push(Segment::Bos);
        match turn.answer {
            Some(answer) => {
                segments.push(Segment::Text(format!("[INST] {user} [/INST] {} ", strip(answer))));
                segments.push(Segment::Eos);
            }
            None => segments.push(Segment::Text(format!("[INST] {user} [/INST]"))),
        }
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_space_is_the_29_characters_of_isspace() {
        // `[c for c in map(chr, range(0x110000)) if c.isspace()]` in CPython 3.
        let python: Vec<u32> = [
            9, 10, 11, 12, 13, 28, 29, 30, 31, 32, 133, 160, 5760, 8192, 8193, 8194, 8195, 8196, 8197, 8198,
            8199, 8200, 8201, 8202, 8232, 8233, 8239, 8287, 12288,
        ]
        .to_vec();
        let ours: Vec<u32> =
            (0..=char::MAX as u32).filter(|&c| char::from_u32(c).is_some_and(is_python_space)).collect();
        assert_eq!(ours, python);
    }

    #[test]
    fn strip_differs_from_trim_in_the_four_separators_only() {
        for c in ('\0'..=char::MAX).filter(|&c| is_python_space(c) != c.is_whitespace()) {
            assert!(('\u{1C}'..='\u{1F}').contains(&c), "{c:?}");
        }
    }

    #[test]
    fn system_prompt_keeps_its_space_and_the_user_loses_only_the_trailing() {
        let segments = Dialog::new("  hi \u{1f}").with_system(" be \n").segments().unwrap();
        assert_eq!(
            segments,
            [Segment::Bos, Segment::Text("[INST] <<SYS>>\n be \n\n<</SYS>>\n\n  hi [/INST]".into())]
        );
    }

    #[test]
    fn an_empty_user_takes_the_blank_line_with_it_and_an_empty_system_keeps_its_tags() {
        let segments = Dialog::new(" ").with_system("").segments().unwrap();
        assert_eq!(segments[1].as_text(), Some("[INST] <<SYS>>\n\n<</SYS>> [/INST]"));
    }

    #[test]
    fn an_empty_answer_leaves_two_spaces() {
        let segments = Dialog::new("a").then("\n", "b").segments().unwrap();
        assert_eq!(segments[1].as_text(), Some("[INST] a [/INST]  "));
    }
}
