//! A token as OpenAI's logprobs tell it: its text with the spaces, its bytes, and where in the answer it begins.

use llama_core::tokenizer::Tokenizer;
use llama_core::{StreamToken, TokenChoice, TokenId};

/// A token that was told. Its text is looked up when it is written down: an answer that waits for its end holds numbers alone.
#[derive(Debug)]
pub(crate) struct Token {
    pub(crate) id: TokenId,
    /// `None` for the first token of a prompt: nothing precedes it.
    pub(crate) logprob: Option<f32>,
    /// The likeliest at its place, likeliest first.
    pub(crate) top: Vec<(TokenId, f32)>,
    /// Where it begins, in characters of the whole text.
    pub(crate) offset: usize,
    is_first: bool,
}

/// How a token is written.
#[derive(Debug, PartialEq)]
pub(crate) struct Surface {
    pub(crate) text: String,
    /// `None` for a control token, which is no text.
    pub(crate) bytes: Option<Vec<u8>>,
}

/// Where in an answer's text the next token begins.
#[derive(Debug)]
pub(crate) struct Cursor {
    /// The text that was told last,
    text: String,
    /// how many of its bytes have their token,
    at: usize,
    /// and how many characters of the answer begin before that place.
    offset: usize,
    /// Whether the text begins with the prompt, of whose first token no probability is known.
    is_echo: bool,
    n_tokens: usize,
    /// Whether the space that a text's first word begins with was left out already.
    has_dropped_space: bool,
}

impl Token {
    /// How this token is written, or another one in its place.
    pub(crate) fn surface(&self, tokenizer: &Tokenizer, id: TokenId) -> Surface {
        Surface::of(tokenizer, id, self.is_first)
    }
}

impl Surface {
    fn of(tokenizer: &Tokenizer, id: TokenId, is_first: bool) -> Self {
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
                let mut text = piece.replace('▁', " ");
                // A token alone is a text of its own: it shows whether one begins with the space.
                if is_first && tokenizer.decode_one(id).is_ok_and(|alone| alone.len() < text.len()) {
                    text.remove(0); // longer than another, so not empty
                }
                Self { bytes: Some(text.clone().into_bytes()), text }
            }
        }
    }
}

impl Cursor {
    pub(crate) fn new(is_echo: bool) -> Self {
        let (text, at, offset, n_tokens) = (String::new(), 0, 0, 0);
        Self { text, at, offset, is_echo, n_tokens, has_dropped_space: false }
    }

    /// More text was told, whose tokens follow.
    pub(crate) fn text(&mut self, text: &str) {
        self.advance(self.text.len());
        text.clone_into(&mut self.text);
        self.at = 0;
    }

    /// The next token of the text.
    pub(crate) fn token(&mut self, tokenizer: &Tokenizer, token: StreamToken) -> Token {
        let StreamToken { id, logprob, top_logprobs, .. } = token;
        let choice = |TokenChoice { id, logprob, .. }| (id, logprob);
        let token = Token {
            id,
            logprob: logprob.filter(|_| !self.is_echo || self.n_tokens > 0),
            top: top_logprobs.into_iter().map(choice).collect(),
            offset: self.offset,
            is_first: self.offset == 0 && self.at == 0 && !self.has_dropped_space,
        };
        let len = |is_first| Surface::of(tokenizer, id, is_first).bytes.map_or(0, |bytes| bytes.len());
        self.has_dropped_space |= token.is_first && len(true) < len(false);
        self.advance(self.at + len(token.is_first));
        self.n_tokens += 1;
        token
    }

    /// Passes the characters up to a byte. A token that begins within a character has that character's place.
    fn advance(&mut self, to: usize) {
        let to = to.min(self.text.len());
        self.offset += (self.at + 1..=to).filter(|at| self.text.is_char_boundary(*at)).count();
        self.at = to;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer() -> Tokenizer {
        Tokenizer::from_bytes(examples::TINY_CHAT_TOKENIZER).unwrap()
    }

    #[test]
    fn at_the_beginning_every_candidate_is_without_its_space_and_nowhere_else() {
        let tokenizer = tokenizer();
        let words: Vec<TokenId> = tokenizer.encode("the the");
        let [first, second] = [words[0], words[words.len() - 1]];
        for id in [first, second] {
            let [at_start, within] = [true, false].map(|is_first| Surface::of(&tokenizer, id, is_first).text);
            assert_eq!(within.strip_prefix(' ').unwrap_or(&within), at_start);
        }
        assert!(Surface::of(&tokenizer, first, false).text.starts_with(' '));
    }

    /// However a text comes in pieces: each token stands at the character that its first byte is a part of.
    #[test]
    fn tokens_stand_where_their_text_does() {
        let tokenizer = tokenizer();
        for text in ["Once upon a time", "Grüße, 😀 an alle", " two  spaces", "日本"] {
            let ids = tokenizer.encode(text);
            let surfaces = ids.iter().enumerate().map(|(i, id)| Surface::of(&tokenizer, *id, i == 0));
            let bytes: Vec<Vec<u8>> = surfaces.map(|surface| surface.bytes.unwrap()).collect();
            assert_eq!(bytes.concat(), text.as_bytes());
            let mut detokenizer = tokenizer.detokenizer();
            let mut cursor = Cursor::new(false);
            let mut waiting = Vec::new();
            let mut at = 0;
            for (id, bytes) in ids.iter().zip(&bytes) {
                waiting.push((*id, at));
                at += bytes.len();
                let piece = detokenizer.push(*id).unwrap();
                if detokenizer.is_incomplete() {
                    continue;
                }
                cursor.text(&piece);
                for (id, at) in waiting.drain(..) {
                    let offset = cursor.offset;
                    cursor.advance(cursor.at + Surface::of(&tokenizer, id, at == 0).bytes.unwrap().len());
                    let begun = text.char_indices().filter(|(begin, _)| *begin <= at).count();
                    assert_eq!(offset, begun - 1, "{text}: {at}");
                }
            }
        }
    }
}
