//! What can be wrong with a tokenizer file, or with the ids one is asked to decode.

use std::io;
use std::path::PathBuf;

use llama_backend::TokenId;
use thiserror::Error;

use crate::checkpoint::GgufError;

/// Why a tokenizer cannot be read, or ids cannot be decoded.
///
/// A file of an unsupported kind is an error that names the kind: reading it anyway would give ids that the model was
/// not trained on, and answers that are subtly wrong.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// Another error, in that file.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<TokenizerError>,
    },
    /// The file cannot be read.
    #[error("cannot be read")]
    Io(#[from] io::Error),
    /// The directory holds neither `tokenizer.model` nor `tokenizer.json`.
    #[error("{}: neither tokenizer.model nor tokenizer.json is here", dir.display())]
    NotFound {
        /// The directory.
        dir: PathBuf,
    },
    /// Far larger than any tokenizer.
    #[error("larger than {limit} bytes, so no tokenizer")]
    TooLarge {
        /// The most that is read.
        limit: u64,
    },
    /// Not a well-formed SentencePiece model.
    #[error("not a SentencePiece model: {problem} at byte {offset}")]
    Malformed {
        /// Where in the file.
        offset: usize,
        /// What is wrong there.
        problem: &'static str,
    },
    /// Not the JSON of a `tokenizer.json`.
    #[error("not a tokenizer.json")]
    Json(#[from] serde_json::Error),
    /// A GGUF file whose header cannot be read, or does not hold what a tokenizer needs.
    #[error("no tokenizer")]
    Gguf(#[from] GgufError),
    /// One piece of the vocabulary cannot be right.
    #[error("piece {id} {problem}")]
    BadPiece {
        /// Its id.
        id: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A piece that Llama 2 cannot do without is missing or is not of its kind.
    #[error("there is no {kind} piece {piece:?}")]
    MissingPiece {
        /// The piece.
        piece: String,
        /// The kind it must be of.
        kind: &'static str,
    },
    /// A well-formed tokenizer that works in another way than Llama 2's.
    #[error("{what} is {found}, and only {supported} is supported")]
    Unsupported {
        /// The setting.
        what: &'static str,
        /// What the file says.
        found: String,
        /// What can be read.
        supported: &'static str,
    },
    /// Two pieces have one score, so that which of them forms first depends on where they stand in the text.
    #[error("pieces {first:?} and {second:?} have the same score {score}")]
    TiedScores {
        /// One of them.
        first: String,
        /// The other.
        second: String,
        /// Their score.
        score: f32,
    },
    /// A merge of pieces, or to a piece, that the vocabulary does not have.
    #[error("the merge of {left:?} and {right:?} needs {piece:?}, which is no piece of text")]
    BadMerge {
        /// The first part.
        left: String,
        /// The second part.
        right: String,
        /// What is missing: one of them, or both together.
        piece: String,
    },
    /// The merges are refused by the `tokenizers` crate.
    #[error("the merges are refused")]
    Merges(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An id that no piece has.
    #[error("token id {id} (at {index}) is out of range: there are {vocab_size} pieces")]
    IdOutOfRange {
        /// The id.
        id: TokenId,
        /// Its position in the list.
        index: usize,
        /// How many pieces there are.
        vocab_size: usize,
    },
}

impl TokenizerError {
    /// Whether this is a sound file of a kind that is not supported, rather than a broken one.
    ///
    /// ```
    /// use llama_core::tokenizer::Tokenizer;
    ///
    /// let error = Tokenizer::from_bytes(br#"{"model": {"type": "Unigram", "vocab": []}}"#).unwrap_err();
    /// assert!(error.is_unsupported());
    /// ```
    pub fn is_unsupported(&self) -> bool {
        match self {
            TokenizerError::File { source, .. } => source.is_unsupported(),
            TokenizerError::Unsupported { .. } | TokenizerError::TiedScores { .. } => true,
            _ => false,
        }
    }
}
