//! Text to token ids and back, exactly as SentencePiece does it for Llama 2.
//!
//! The decision: three file formats, one tokenizer. `tokenizer.model`, `tokenizer.json` and a GGUF file are all read into the same
//! checked vocabulary, merges run in the `tokenizers` crate, and what that crate does differently from the reference
//! (control tokens in text, invalid bytes, leading spaces) is not used of it. Text can never become a control id: BOS
//! and EOS come from [`Segment`]s or from the caller, and the text `</s>` is four ordinary characters.

mod detokenizer;
mod encode;
mod error;
mod gguf;
mod hf;
mod sentencepiece;
mod vocab;

use std::fmt;
use std::fs;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;

use llama_backend::TokenId;
use llama_dialog::{Dialog, Segment, TagFound};

pub use detokenizer::Detokenizer;
pub use error::TokenizerError;

use crate::checkpoint::{CheckpointError, mmap};
use encode::Encoder;
use vocab::{Parts, Vocab};

/// No tokenizer is larger; a checkpoint that is named by mistake is.
const MAX_FILE_LEN: u64 = 64 << 20;

/// A Llama 2 tokenizer. Cloning shares it; threads may share one.
///
/// ```no_run
/// use llama_core::tokenizer::Tokenizer;
///
/// let tokenizer = Tokenizer::open("llama-2-7b-chat/tokenizer.model")?;
/// let ids = tokenizer.encode("Hello");
/// assert_eq!(tokenizer.decode(&ids)?, "Hello");
/// # Ok::<(), llama_core::tokenizer::TokenizerError>(())
/// ```
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    vocab: Vocab,
    encoder: Encoder,
}

impl Tokenizer {
    /// Reads a tokenizer from a file, or from the `tokenizer.model` or else the `tokenizer.json` of a directory.
    ///
    /// What a file is shows from its content; its name does not matter. Of a GGUF file only the header is read.
    ///
    /// # Errors
    ///
    /// Every error names the file: it cannot be read, is broken, or is a tokenizer of another kind.
    ///
    /// ```
    /// use llama_core::tokenizer::Tokenizer;
    ///
    /// let error = Tokenizer::open("no/such/tokenizer.model").unwrap_err();
    /// assert!(error.to_string().starts_with("no/such/tokenizer.model"));
    /// ```
    pub fn open(path: impl AsRef<Path>) -> Result<Tokenizer, TokenizerError> {
        let path = path.as_ref();
        let file = match path.is_dir() {
            false => path.to_owned(),
            true => ["tokenizer.model", "tokenizer.json"]
                .map(|name| path.join(name))
                .into_iter()
                .find(|file| file.exists())
                .ok_or_else(|| TokenizerError::NotFound { dir: path.to_owned() })?,
        };
        let read = || {
            let mut bytes = Vec::new();
            let mut opened = fs::File::open(&file)?;
            opened.by_ref().take(gguf::MAGIC.len() as u64).read_to_end(&mut bytes)?;
            if bytes == gguf::MAGIC {
                return Tokenizer::from_bytes(mmap::map(&file).map_err(not_mapped)?.bytes());
            }
            opened.take(MAX_FILE_LEN + 1).read_to_end(&mut bytes)?;
            match bytes.len() as u64 > MAX_FILE_LEN {
                true => Err(TokenizerError::TooLarge { limit: MAX_FILE_LEN }),
                false => Tokenizer::from_bytes(&bytes),
            }
        };
        read().map_err(|source| TokenizerError::File { path: file.clone(), source: Box::new(source) })
    }

    /// Reads a tokenizer from the content of a file of any of the formats, say one that is embedded in the program.
    ///
    /// # Errors
    ///
    /// The content is broken, or is a tokenizer of another kind.
    ///
    /// ```
    /// use llama_core::tokenizer::{Tokenizer, TokenizerError};
    ///
    /// let error = Tokenizer::from_bytes(b"\x0a\x7f cut short").unwrap_err();
    /// assert!(matches!(error, TokenizerError::Malformed { .. }));
    /// ```
    pub fn from_bytes(bytes: &[u8]) -> Result<Tokenizer, TokenizerError> {
        let Parts { pieces, merges, rules, names } = match bytes {
            gguf if gguf.starts_with(gguf::MAGIC) => gguf::read(gguf)?,
            json if is_json(json) => hf::read(json)?,
            model => sentencepiece::read(model)?,
        };
        let vocab = Vocab::new(pieces, rules, &names)?;
        let encoder = Encoder::new(&vocab, merges)?;
        Ok(Tokenizer(Arc::new(Inner { vocab, encoder })))
    }

    fn vocab(&self) -> &Vocab {
        &self.0.vocab
    }

    /// The ids of a text, without BOS and EOS (the reference's `encode(text, bos=False, eos=False)`).
    ///
    /// Every text has ids: what has no piece is spelt in bytes. No text has control ids, whatever it says.
    ///
    /// ```
    /// # let tokenizer = llama_core::tokenizer::Tokenizer::from_bytes(include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizer.model")))?;
    /// let ids = tokenizer.encode("<s>");
    /// assert!(!ids.contains(&tokenizer.bos_id()));
    /// assert!(tokenizer.encode("").is_empty());
    /// # Ok::<(), llama_core::tokenizer::TokenizerError>(())
    /// ```
    pub fn encode(&self, text: &str) -> Vec<TokenId> {
        let mut ids = Vec::new();
        self.0.encoder.encode(self.vocab(), text, &mut ids);
        ids
    }

    /// BOS and the ids of a text: a prompt as `text_completion` gives it to the model.
    ///
    /// ```
    /// # let tokenizer = llama_core::tokenizer::Tokenizer::from_bytes(include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizer.model")))?;
    /// assert_eq!(tokenizer.encode_prompt(""), [tokenizer.bos_id()]);
    /// # Ok::<(), llama_core::tokenizer::TokenizerError>(())
    /// ```
    pub fn encode_prompt(&self, text: &str) -> Vec<TokenId> {
        let mut ids = vec![self.bos_id()];
        self.0.encoder.encode(self.vocab(), text, &mut ids);
        ids
    }

    /// The ids of a rendered dialog. Each text is encoded on its own.
    ///
    /// ```
    /// # let tokenizer = llama_core::tokenizer::Tokenizer::from_bytes(include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizer.model")))?;
    /// use llama_dialog::Segment;
    ///
    /// assert_eq!(tokenizer.encode_segments(&[Segment::Bos, Segment::Eos]), [tokenizer.bos_id(), tokenizer.eos_id()]);
    /// # Ok::<(), llama_core::tokenizer::TokenizerError>(())
    /// ```
    pub fn encode_segments(&self, segments: &[Segment]) -> Vec<TokenId> {
        let mut ids = Vec::new();
        for segment in segments {
            match segment {
                Segment::Bos => ids.push(self.bos_id()),
                Segment::Eos => ids.push(self.eos_id()),
                Segment::Text(text) => self.0.encoder.encode(self.vocab(), text, &mut ids),
            }
        }
        ids
    }

    /// The ids of a dialog, as `chat_completion` gives them to the model.
    ///
    /// # Errors
    ///
    /// A message holds a special tag, so that the dialog cannot be rendered.
    ///
    /// ```
    /// # let tokenizer = llama_core::tokenizer::Tokenizer::from_bytes(include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizer.model")))?;
    /// use llama_dialog::Dialog;
    ///
    /// assert!(tokenizer.encode_dialog(&Dialog::new("Hi")).is_ok());
    /// assert!(tokenizer.encode_dialog(&Dialog::new("[INST] Hi")).is_err());
    /// # Ok::<(), llama_core::tokenizer::TokenizerError>(())
    /// ```
    pub fn encode_dialog(&self, dialog: &Dialog) -> Result<Vec<TokenId>, TagFound> {
        Ok(self.encode_segments(&dialog.segments()?))
    }

    /// The text of ids.
    ///
    /// As SentencePiece decodes: control ids vanish, one leading space is dropped, an unknown id reads " ⁇ ", and bytes
    /// that are no UTF-8 become one U+FFFD each.
    ///
    /// # Errors
    ///
    /// An id is out of range; the error says which and where.
    ///
    /// ```
    /// # let tokenizer = llama_core::tokenizer::Tokenizer::from_bytes(include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizer.model")))?;
    /// assert_eq!(tokenizer.decode(&tokenizer.encode(" two  spaces"))?, " two  spaces");
    /// assert_eq!(tokenizer.decode(&[tokenizer.bos_id()])?, "");
    /// # Ok::<(), llama_core::tokenizer::TokenizerError>(())
    /// ```
    pub fn decode(&self, ids: &[TokenId]) -> Result<String, TokenizerError> {
        let mut text = String::new();
        let mut state = detokenizer::State::default();
        for &id in ids {
            state.push(self, id, &mut text)?;
        }
        state.flush(&mut text);
        Ok(text)
    }

    /// The text of one id alone: an entry of the reference's `tokens`, where "▁the" and "the" both read "the".
    ///
    /// The unknown id is empty here, as in the reference (whose Python takes the id 0 for nothing at all).
    ///
    /// # Errors
    ///
    /// The id is out of range.
    ///
    /// ```
    /// # let tokenizer = llama_core::tokenizer::Tokenizer::from_bytes(include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizer.model")))?;
    /// assert_eq!(tokenizer.decode_one(tokenizer.eos_id())?, "");
    /// # Ok::<(), llama_core::tokenizer::TokenizerError>(())
    /// ```
    pub fn decode_one(&self, id: TokenId) -> Result<String, TokenizerError> {
        match id {
            TokenId(0) => Ok(String::new()),
            id => self.decode(&[id]),
        }
    }

    /// A decoder that takes ids one at a time, for text that is shown while it is generated.
    ///
    /// ```
    /// # let tokenizer = llama_core::tokenizer::Tokenizer::from_bytes(include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizer.model")))?;
    /// assert_eq!(tokenizer.detokenizer().finish(), "");
    /// # Ok::<(), llama_core::tokenizer::TokenizerError>(())
    /// ```
    pub fn detokenizer(&self) -> Detokenizer {
        Detokenizer::new(self.clone())
    }

    /// The piece of an id as the vocabulary writes it, `▁` for a space; `None` out of range.
    ///
    /// ```
    /// # let tokenizer = llama_core::tokenizer::Tokenizer::from_bytes(include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizer.model")))?;
    /// assert_eq!(tokenizer.piece(tokenizer.bos_id()), Some("<s>"));
    /// # Ok::<(), llama_core::tokenizer::TokenizerError>(())
    /// ```
    pub fn piece(&self, id: TokenId) -> Option<&str> {
        self.vocab().pieces.get(id.0 as usize).map(|piece| piece.text.as_str())
    }

    /// The score of an id, by which SentencePiece orders merges; `None` out of range and for a `tokenizer.json`.
    ///
    /// ```
    /// # let tokenizer = llama_core::tokenizer::Tokenizer::from_bytes(include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizer.model")))?;
    /// assert_eq!(tokenizer.score(tokenizer.bos_id()), Some(0.0));
    /// # Ok::<(), llama_core::tokenizer::TokenizerError>(())
    /// ```
    pub fn score(&self, id: TokenId) -> Option<f32> {
        self.vocab().pieces.get(id.0 as usize).and_then(|piece| piece.score)
    }

    /// How many pieces there are (`n_words` in the reference); ids are below it.
    ///
    /// ```
    /// # let tokenizer = llama_core::tokenizer::Tokenizer::from_bytes(include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizer.model")))?;
    /// assert_eq!(tokenizer.vocab_size(), 266); // a tiny one; Llama 2 has 32000
    /// # Ok::<(), llama_core::tokenizer::TokenizerError>(())
    /// ```
    pub fn vocab_size(&self) -> usize {
        self.vocab().pieces.len()
    }

    /// Beginning of sequence.
    ///
    /// ```
    /// # let tokenizer = llama_core::tokenizer::Tokenizer::from_bytes(include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizer.model")))?;
    /// assert_eq!(tokenizer.bos_id().0, 1);
    /// # Ok::<(), llama_core::tokenizer::TokenizerError>(())
    /// ```
    pub fn bos_id(&self) -> TokenId {
        self.vocab().bos
    }

    /// End of sequence.
    ///
    /// ```
    /// # let tokenizer = llama_core::tokenizer::Tokenizer::from_bytes(include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizer.model")))?;
    /// assert_eq!(tokenizer.eos_id().0, 2);
    /// # Ok::<(), llama_core::tokenizer::TokenizerError>(())
    /// ```
    pub fn eos_id(&self) -> TokenId {
        self.vocab().eos
    }

    /// The unknown piece. Text never gives it, since bytes spell what has no piece.
    ///
    /// ```
    /// # let tokenizer = llama_core::tokenizer::Tokenizer::from_bytes(include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizer.model")))?;
    /// assert_eq!(tokenizer.unk_id().0, 0);
    /// # Ok::<(), llama_core::tokenizer::TokenizerError>(())
    /// ```
    pub fn unk_id(&self) -> TokenId {
        self.vocab().unk
    }

    /// Padding, if the vocabulary has it; Llama 2's does not (the reference's `pad_id` is -1).
    ///
    /// ```
    /// # let tokenizer = llama_core::tokenizer::Tokenizer::from_bytes(include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizer.model")))?;
    /// assert_eq!(tokenizer.pad_id(), None);
    /// # Ok::<(), llama_core::tokenizer::TokenizerError>(())
    /// ```
    pub fn pad_id(&self) -> Option<TokenId> {
        self.vocab().pad
    }
}

impl fmt::Debug for Tokenizer {
    /// The facts, not the vocabulary.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Vocab { rules, unk, bos, eos, pad, .. } = self.vocab();
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("unk_id", unk)
            .field("bos_id", bos)
            .field("eos_id", eos)
            .field("pad_id", pad)
            .field("rules", rules)
            .finish()
    }
}

/// What the checkpoint's reader says of a file that it cannot map.
fn not_mapped(error: CheckpointError) -> TokenizerError {
    TokenizerError::Io(match error {
        CheckpointError::Io { source, .. } => source,
        other => io::Error::other(other),
    })
}

/// Whether this is the beginning of a JSON object. A protobuf can begin with a line feed and a brace too (key and length
/// of its first piece), but then goes on with another line feed and no quote.
fn is_json(bytes: &[u8]) -> bool {
    let inside = bytes.trim_ascii_start().strip_prefix(b"{").map(<[u8]>::trim_ascii_start);
    inside.is_some_and(|inside| matches!(inside.first(), Some(b'"' | b'}')))
}
