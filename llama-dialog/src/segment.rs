//! What a rendered dialog is made of.
//!
//! Begin and end of a sequence are variants, not the texts `<s>` and `</s>`: a tokenizer turns them into their ids, and
//! whatever stands in a text segment, these two strings included, stays text.

/// A part of a rendered dialog: a control token or a text to be encoded on its own.
///
/// ```
/// use llama_dialog::{Dialog, Segment};
///
/// let segments = Dialog::new("Is </s> text?").segments()?;
/// assert_eq!(segments, [Segment::Bos, Segment::Text("[INST] Is </s> text? [/INST]".into())]);
/// # Ok::<(), llama_dialog::TagFound>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Segment {
    /// Beginning of sequence; one opens every turn.
    Bos,
    /// End of sequence; one closes every answered turn.
    Eos,
    /// A text, encoded by itself: merges do not cross segments.
    Text(String),
}

impl Segment {
    /// The text, if it is one.
    ///
    /// ```
    /// use llama_dialog::Segment;
    ///
    /// assert_eq!(Segment::Text("hi".into()).as_text(), Some("hi"));
    /// assert_eq!(Segment::Bos.as_text(), None);
    /// ```
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Segment::Text(text) => Some(text),
            Segment::Bos | Segment::Eos => None,
        }
    }
}
