//! A token as OpenAI's logprobs tell it: its text with the spaces, its bytes, and where in the answer it begins.

use llama_core::tokenizer::Tokenizer;
use llama_core::{StreamToken, TokenChoice, TokenId};

#[derive(Debug)]
pub(crate) struct Token {
    pub(crate) surface: Surface,
    /// `None` for the first token of a prompt, of which none is known.
    pub(crate) logprob: Option<f32>,
    pub(crate) top: Vec<(Surface, f32)>,
    /// Where it begins, in characters of the whole text.
    pub(crate) offset: usize,
}

/// How a token is written.
#[derive(Debug)]
pub(crate) struct Surface {
    pub(crate) text: String,
    /// `None` for a control token, which is no text.
    pub(crate) bytes: Option<Vec<u8>>,
}

/// Where the tokens of an answer begin.
#[derive(Debug, Default)]
pub(crate) struct Offsets {
    /// Characters before the piece,
    before: usize,
    /// the piece of text whose tokens come,
    piece: String,
    /// and how many bytes of it they have.
    at: usize,
    n_tokens: usize,
}

impl Surface {
    fn of(tokenizer: &Tokenizer, id: TokenId) -> Self {
        // A token of the model is one of the tokenizer's: the builder compares them.
        let piece = tokenizer.piece(id).unwrap_or_default();
        if [tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.unk_id()].contains(&id) {
            return Self { text: piece.to_owned(), bytes: None };
        }
        let byte = piece.strip_prefix("<0x").and_then(|hex| hex.strip_suffix('>'));
        match byte.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if byte.is_ascii() => Self { text: char::from(byte).into(), bytes: Some(vec![byte]) },
            Some(byte) => Self { text: format!("bytes:\\x{byte:02x}"), bytes: Some(vec![byte]) },
            None => {
                let text = piece.replace('▁', " ");
                Self { bytes: Some(text.clone().into_bytes()), text }
            }
        }
    }
}

impl Offsets {
    pub(crate) fn is_at_start(&self) -> bool {
        self.before == 0 && self.piece.is_empty()
    }

    /// More text, whose tokens follow.
    pub(crate) fn text(&mut self, text: &str) {
        self.before += self.piece.chars().count();
        text.clone_into(&mut self.piece);
        self.at = 0;
    }

    pub(crate) fn token(&mut self, tokenizer: &Tokenizer, token: StreamToken) -> Token {
        let StreamToken { id, logprob, top_logprobs, .. } = token;
        let mut surface = Surface::of(tokenizer, id);
        let begun = self.piece.char_indices().filter(|(at, _)| *at <= self.at).count();
        // Where a token begins within a character, it is that character's place.
        let offset = self.before + begun.saturating_sub(usize::from(self.at < self.piece.len()));
        let is_told = |bytes: &[u8]| self.piece.as_bytes()[self.at..].starts_with(bytes); // `at` is at most the length
        // The space before a text's first word is not told.
        if let Some([b' ', bytes @ ..]) = surface.bytes.as_deref()
            && !is_told(b" ")
        {
            surface = Surface { text: surface.text[1..].to_owned(), bytes: Some(bytes.to_owned()) };
        }
        let len = surface.bytes.as_ref().map_or(0, Vec::len);
        self.at = (self.at + len).min(self.piece.len());
        self.n_tokens += 1;
        let choice = |choice: TokenChoice| (Surface::of(tokenizer, choice.id), choice.logprob);
        let top = top_logprobs.into_iter().map(choice).collect();
        // Of an echoed prompt's first token no probability is known; llama-core says 0.
        let logprob = logprob.filter(|_| surface.bytes.is_some() || self.n_tokens > 1);
        Token { surface, logprob, top, offset }
    }
}
