//! Ids to text, one id at a time.
//!
//! There is one decoder, and it streams: decoding a list is pushing its ids and taking the rest, so that the pieces of a
//! stream join to exactly what decoding the whole gives. It is our own because the rules are SentencePiece's: control
//! pieces vanish, one leading space is dropped, and of bytes that are no UTF-8 each becomes a U+FFFD of its own (the
//! `tokenizers` crate and `String::from_utf8_lossy` both count otherwise).

use llama_backend::TokenId;

use super::vocab::{Kind, Rules, SPACE};
use super::{Tokenizer, TokenizerError};

/// Turns ids into text as they come, holding back characters that are not complete.
///
/// ```
/// # let tokenizer = llama_core::tokenizer::Tokenizer::from_bytes(include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizer.model")))?;
/// # let ids = &tokenizer.encode("a 日");
/// let mut detokenizer = tokenizer.detokenizer();
/// let mut text = String::new();
/// for &id in ids {
///     text.push_str(&detokenizer.push(id)?); // print it: it will not change any more
/// }
/// text.push_str(&detokenizer.finish());
/// assert_eq!(text, tokenizer.decode(ids)?);
/// # Ok::<(), llama_core::tokenizer::TokenizerError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    state: State,
}

impl Detokenizer {
    pub(super) fn new(tokenizer: Tokenizer) -> Detokenizer {
        Detokenizer { tokenizer, state: State::default() }
    }

    /// The text that this id makes certain: often its piece, nothing while a character is incomplete, more when
    /// what was held back turns out not to be one.
    ///
    /// # Errors
    ///
    /// The id is out of range; nothing is lost, and the next id may be pushed. `index` in the error counts the ids
    /// pushed before.
    ///
    /// ```
    /// # let tokenizer = llama_core::tokenizer::Tokenizer::from_bytes(include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizer.model")))?;
    /// # let mut detokenizer = tokenizer.detokenizer();
    /// // "😀" is four bytes in Llama 2's vocabulary: nothing is said until the last.
    /// let pieces: Result<Vec<String>, _> = [243, 162, 155, 131].map(|id| detokenizer.push(id.into())).into_iter().collect();
    /// assert_eq!(pieces?, ["", "", "", "😀"]);
    /// # Ok::<(), llama_core::tokenizer::TokenizerError>(())
    /// ```
    pub fn push(&mut self, id: TokenId) -> Result<String, TokenizerError> {
        let mut text = String::new();
        self.state.push(&self.tokenizer, id, &mut text)?;
        Ok(text)
    }

    /// Whether it holds back the beginning of a character.
    ///
    /// ```
    /// # let tokenizer = llama_core::tokenizer::Tokenizer::from_bytes(include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizer.model")))?;
    /// # let mut detokenizer = tokenizer.detokenizer();
    /// detokenizer.push(243.into())?;
    /// assert!(detokenizer.is_incomplete());
    /// # Ok::<(), llama_core::tokenizer::TokenizerError>(())
    /// ```
    pub fn is_incomplete(&self) -> bool {
        !self.state.held.is_empty()
    }

    /// The spaces before the text's first word that it has left out.
    pub(crate) fn dropped_spaces(&self) -> usize {
        self.state.dropped_spaces
    }

    /// What was still held back: the bytes of a character that never became complete, a U+FFFD each.
    ///
    /// ```
    /// # let tokenizer = llama_core::tokenizer::Tokenizer::from_bytes(include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizer.model")))?;
    /// # let mut detokenizer = tokenizer.detokenizer();
    /// assert_eq!(detokenizer.push(243.into())?, "");
    /// assert_eq!(detokenizer.finish(), "\u{fffd}");
    /// # Ok::<(), llama_core::tokenizer::TokenizerError>(())
    /// ```
    pub fn finish(mut self) -> String {
        let mut text = String::new();
        self.state.flush(&mut text);
        text
    }
}

/// Where a decoder stands (`SentencePieceProcessor::Decode`).
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// How many ids came before.
    index: usize,
    /// The beginning of a character: at most three bytes that are not UTF-8 yet.
    held: Vec<u8>,
    /// Whether any text has come out.
    spoken: bool,
    /// How many leading spaces have been dropped.
    dropped_spaces: usize,
}

impl State {
    /// Appends what the id makes certain.
    pub(super) fn push(
        &mut self,
        tokenizer: &Tokenizer,
        id: TokenId,
        text: &mut String,
    ) -> Result<(), TokenizerError> {
        let vocab = tokenizer.vocab();
        let piece = vocab.piece(id, self.index)?;
        self.index += 1;
        let begin = text.len();
        match piece.kind {
            Kind::Byte(byte) => {
                self.held.push(byte);
                self.drain(text);
            }
            // A control piece is nothing, but it breaks a run of bytes.
            Kind::Control => self.flush(text),
            Kind::Unknown => {
                self.flush(text);
                text.push_str(&vocab.rules.unk_surface);
            }
            Kind::Normal => {
                self.flush(text);
                let drops_more = self.dropped_spaces == 0 || vocab.rules.remove_extra_whitespaces;
                let at_start = !self.spoken && drops_more && text.len() == begin;
                let surface = self.without_prefix(&piece.text, at_start, &vocab.rules);
                text.extend(surface.chars().map(|c| if c == SPACE { ' ' } else { c }));
            }
        }
        self.spoken |= text.len() > begin;
        Ok(())
    }

    /// Drops the leading space of the first piece. Where extra spaces are removed, that is done to every piece until
    /// there is text.
    fn without_prefix<'a>(&mut self, piece: &'a str, at_start: bool, rules: &Rules) -> &'a str {
        if !at_start || !(rules.add_dummy_prefix || rules.remove_extra_whitespaces) {
            return piece;
        }
        match piece.strip_prefix(SPACE) {
            Some(rest) => {
                self.dropped_spaces += 1;
                rest
            }
            None => piece,
        }
    }

    /// Appends all that is certain of the bytes held.
    fn drain(&mut self, text: &mut String) {
        loop {
            match std::str::from_utf8(&self.held) {
                Ok(whole) => {
                    text.push_str(whole);
                    self.held.clear();
                    return;
                }
                Err(error) if error.error_len().is_none() && error.valid_up_to() == 0 => return,
                // Bytes are drained one by one, so that nothing valid comes before what is wrong. The first byte begins
                // no character; the ones behind it may.
                Err(_) => {
                    text.push(char::REPLACEMENT_CHARACTER);
                    self.held.remove(0);
                }
            }
        }
    }

    /// Appends the bytes held, which are the beginning of a character that will not come.
    pub(super) fn flush(&mut self, text: &mut String) {
        text.extend(self.held.drain(..).map(|_| char::REPLACEMENT_CHARACTER));
    }
}
