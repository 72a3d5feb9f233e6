//! What the two file formats have in common once they are read: pieces, rules, special ids.
//!
//! A reader hands over [`Parts`]; what must hold of any Llama 2 tokenizer is checked here once, whatever the format.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use llama_backend::TokenId;

use super::TokenizerError;

/// `▁`, by which SentencePiece writes a space.
pub(super) const SPACE: char = '\u{2581}';

/// More bytes than any piece of a real vocabulary has; a limit, because deriving merges is quadratic in it.
const MAX_PIECE_LEN: usize = 512;

/// What a piece is for. Only normal pieces come of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    /// Decoded as " ⁇ ".
    Unknown,
    /// Structure, like BOS and EOS: decoded as nothing.
    Control,
    /// One byte of a character that has no piece of its own.
    Byte(u8),
}

#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) kind: Kind,
    /// The higher, the sooner it forms. A `tokenizer.json` has ranked merges in its place.
    pub(super) score: Option<f32>,
}

/// How text is prepared (SentencePiece's `NormalizerSpec`, `identity` throughout) and how an unknown piece reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    /// Put a space in front of every text.
    pub(super) add_dummy_prefix: bool,
    /// Drop spaces at both ends and make one of several.
    pub(super) remove_extra_whitespaces: bool,
    /// Write `▁` for a space.
    pub(super) escape_whitespaces: bool,
    pub(super) unk_surface: String,
}

impl Default for Rules {
    /// SentencePiece's defaults, but for the spaces: Llama 2 keeps them all.
    fn default() -> Rules {
        Rules {
            add_dummy_prefix: true,
            remove_extra_whitespaces: false,
            escape_whitespaces: true,
            unk_surface: " \u{2047} ".to_owned(),
        }
    }
}

/// The names of the pieces that stand for structure.
#[derive(Clone, Debug)]
pub(super) struct SpecialNames {
    pub(super) unk: String,
    pub(super) bos: String,
    pub(super) eos: String,
    pub(super) pad: String,
}

impl Default for SpecialNames {
    fn default() -> SpecialNames {
        SpecialNames { unk: "<unk>".into(), bos: "<s>".into(), eos: "</s>".into(), pad: "<pad>".into() }
    }
}

/// What a reader found in a file.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) pieces: Vec<Piece>,
    /// Pairs in the order of their rank; `None` where the order follows from the scores.
    pub(super) merges: Option<Vec<(String, String)>>,
    pub(super) rules: Rules,
    pub(super) names: SpecialNames,
}

/// A checked vocabulary.
pub(super) struct Vocab {
    pub(super) pieces: Vec<Piece>,
    /// The ids of the normal pieces: all that text can turn into by merging.
    pub(super) normal: HashMap<String, u32>,
    /// The ids of the 256 byte pieces.
    pub(super) bytes: [TokenId; 256],
    pub(super) rules: Rules,
    pub(super) unk: TokenId,
    pub(super) bos: TokenId,
    pub(super) eos: TokenId,
    pub(super) pad: Option<TokenId>,
}

impl Vocab {
    /// Checks what a reader found: no piece twice, byte fallback complete, the special pieces there and of their kind.
    pub(super) fn new(
        pieces: Vec<Piece>,
        rules: Rules,
        names: &SpecialNames,
    ) -> Result<Vocab, TokenizerError> {
        let mut all: HashMap<&str, u32> = HashMap::with_capacity(pieces.len());
        let mut bytes = [None; 256];
        for (id, piece) in pieces.iter().enumerate() {
            let bad = |problem| TokenizerError::BadPiece { id, problem };
            let token = u32::try_from(id).map_err(|_| bad("has an id beyond 32 bits"))?;
            match piece.text.len() {
                0 => return Err(bad("is empty")),
                1..=MAX_PIECE_LEN => {}
                _ => return Err(bad("is longer than 512 bytes")),
            }
            if piece.score.is_some_and(f32::is_nan) {
                return Err(bad("has a score that is not a number"));
            }
            match all.entry(&piece.text) {
                Entry::Occupied(_) => return Err(bad("is there twice")),
                Entry::Vacant(entry) => entry.insert(token),
            };
            if let Kind::Byte(byte) = piece.kind {
                bytes[usize::from(byte)] = Some(TokenId(token));
            }
        }
        let of_kind = |piece: &str, kind: Kind| {
            let id = all.get(piece).copied().filter(|&id| pieces[id as usize].kind == kind);
            id.map(TokenId)
        };
        let required = |piece: &str, kind: Kind, name: &'static str| {
            of_kind(piece, kind)
                .ok_or_else(|| TokenizerError::MissingPiece { piece: piece.into(), kind: name })
        };
        let unk = required(&names.unk, Kind::Unknown, "unknown")?;
        let bos = required(&names.bos, Kind::Control, "control")?;
        let eos = required(&names.eos, Kind::Control, "control")?;
        let pad = of_kind(&names.pad, Kind::Control);
        let mut byte_ids = [TokenId(0); 256];
        for (byte, (id, found)) in byte_ids.iter_mut().zip(bytes).enumerate() {
            *id = found.ok_or_else(|| TokenizerError::MissingPiece {
                piece: format!("<0x{byte:02X}>"),
                kind: "byte",
            })?;
        }
        let normal = all
            .iter()
            .filter(|&(_, &id)| pieces[id as usize].kind == Kind::Normal)
            .map(|(&text, &id)| (text.to_owned(), id))
            .collect();
        Ok(Vocab { normal, bytes: byte_ids, rules, unk, bos, eos, pad, pieces })
    }

    /// The piece of an id; `index` is where the id stands in the caller's list.
    pub(super) fn piece(&self, id: TokenId, index: usize) -> Result<&Piece, TokenizerError> {
        let vocab_size = self.pieces.len();
        self.pieces.get(id.0 as usize).ok_or(TokenizerError::IdOutOfRange { id, index, vocab_size })
    }
}

/// The byte that a piece `<0xHH>` stands for.
pub(super) fn byte_of(piece: &str) -> Option<u8> {
    let hex = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    // Exactly as SentencePiece writes them: two digits, upper case.
    let canonical = hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    canonical.then(|| u8::from_str_radix(hex, 16).ok()).flatten()
}
