//! Reads the tokenizer that a GGUF file holds, as far as it is SentencePiece's (`tokenizer.ggml.model` is `llama`).
//!
//! The file has what `tokenizer.model` has, in other words: pieces, scores and kinds. They become the same [`Parts`], and ids are
//! those of the `tokenizer.model` that the file was converted from. Two things converters write differently: `<unk>` may be called a
//! control piece, and rows of the embedding that no piece belongs to are given one that is unused.
//!
//! Whether to put BOS in front of a prompt (`add_bos_token`) is not asked: the reference always does.

use llama_backend::TokenId;

use super::TokenizerError;
use super::vocab::{Kind, Parts, Piece, Rules, SpecialNames, byte_of};
use crate::checkpoint::GgufError;
use crate::checkpoint::gguf::{Header, Metadata, TOKENIZER, Value};

pub(super) use crate::checkpoint::gguf::MAGIC;

const TOKENS: &str = "tokenizer.ggml.tokens";
const SCORES: &str = "tokenizer.ggml.scores";
const KINDS: &str = "tokenizer.ggml.token_type";

/// Reads the tokenizer of a GGUF file.
///
/// # Errors
///
/// The header cannot be read or holds no tokenizer ([`TokenizerError::Gguf`]), or the tokenizer is of another kind
/// ([`TokenizerError::Unsupported`]).
pub(super) fn read(file: &[u8]) -> Result<Parts, TokenizerError> {
    let metadata = Header::read(file)?.metadata;
    match metadata.string("tokenizer.ggml.model")? {
        Some(TOKENIZER) => {}
        Some(other) => {
            return Err(unsupported("the kind of tokenizer", other, "SentencePiece's (\"llama\")"));
        }
        None => return Err(metadata.wrong("tokenizer.ggml.model", "\"llama\"").into()),
    }
    if metadata.array("tokenizer.ggml.precompiled_charsmap")?.is_some_and(|map| map.len() > 0) {
        return Err(unsupported("the normalizer", "one that maps characters", "\"identity\""));
    }
    let texts = texts(&metadata)?;
    let n = texts.len();
    let scores = numbers(&metadata, SCORES, n, |value| match value {
        Value::Float(score) => Some(score as f32), // which it was
        _ => None,
    })?;
    let scores = scores.ok_or_else(|| metadata.wrong(SCORES, "a score for each token"))?;
    let special = Special::read(&metadata)?;
    let kinds = numbers(&metadata, KINDS, n, |value| match value {
        Value::Signed(kind) => Some(kind),
        Value::Unsigned(kind) => i64::try_from(kind).ok(),
        _ => None,
    })?;
    let kinds = kinds.unwrap_or_else(|| special.usual_kinds(&texts));

    let name = |id: Option<usize>, default: String| match id {
        None => Ok(default),
        Some(id) => texts.get(id).map(|&text| text.to_owned()).ok_or_else(|| {
            let id = u32::try_from(id).map_or(TokenId(u32::MAX), TokenId);
            TokenizerError::IdOutOfRange { id, index: 0, vocab_size: n }
        }),
    };
    let usual = SpecialNames::default();
    let names = SpecialNames {
        unk: name(Some(special.unk), usual.unk)?,
        bos: name(Some(special.bos), usual.bos)?,
        eos: name(Some(special.eos), usual.eos)?,
        pad: name(special.pad, usual.pad)?,
    };
    let pieces = texts.iter().zip(scores).zip(kinds).enumerate().map(|(id, ((&text, score), kind))| {
        let kind = if id == special.unk { UNKNOWN } else { kind };
        Ok(Piece { text: text.to_owned(), kind: self::kind(kind, id, text)?, score: Some(score) })
    });
    let pieces = pieces.collect::<Result<_, TokenizerError>>()?;
    let flag = |key: &str, default: bool| Ok::<_, GgufError>(metadata.flag(key)?.unwrap_or(default));
    let rules = Rules::default();
    let rules = Rules {
        add_dummy_prefix: flag("tokenizer.ggml.add_space_prefix", rules.add_dummy_prefix)?,
        remove_extra_whitespaces: flag(
            "tokenizer.ggml.remove_extra_whitespaces",
            rules.remove_extra_whitespaces,
        )?,
        ..rules
    };
    Ok(Parts { pieces, merges: None, rules, names })
}

fn unsupported(what: &'static str, found: &str, supported: &'static str) -> TokenizerError {
    TokenizerError::Unsupported { what, found: found.to_owned(), supported }
}

fn texts<'a>(metadata: &Metadata<'a>) -> Result<Vec<&'a str>, GgufError> {
    let array = metadata.array(TOKENS)?.ok_or_else(|| metadata.wrong(TOKENS, "an array of text"))?;
    let text = |value| match value {
        Value::String(text) => Ok(text),
        _ => Err(metadata.wrong(TOKENS, "an array of text")),
    };
    array.values().map(text).collect()
}

/// An array of numbers, one for each of the `n` tokens; `None` where it is absent.
fn numbers<T>(
    metadata: &Metadata<'_>,
    key: &str,
    n: usize,
    read: impl Fn(Value<'_>) -> Option<T>,
) -> Result<Option<Vec<T>>, GgufError> {
    let Some(array) = metadata.array(key)? else { return Ok(None) };
    if array.len() != n {
        return Err(metadata.wrong(key, format!("an array of {n} values, as many as tokens")));
    }
    let wrong = || metadata.wrong(key, "an array of numbers of its usual type");
    array.values().map(|value| read(value).ok_or_else(wrong)).collect::<Result<_, _>>().map(Some)
}

/// The ids of the pieces that stand for structure.
struct Special {
    unk: usize,
    bos: usize,
    eos: usize,
    pad: Option<usize>,
}

impl Special {
    /// Where a file does not say, the ids are Llama 2's.
    fn read(metadata: &Metadata<'_>) -> Result<Self, GgufError> {
        let id = |what: &str| metadata.size(&format!("tokenizer.ggml.{what}_token_id"));
        Ok(Self {
            unk: id("unknown")?.unwrap_or(0),
            bos: id("bos")?.unwrap_or(1),
            eos: id("eos")?.unwrap_or(2),
            pad: id("padding")?,
        })
    }

    /// The kinds of pieces in a file that does not say.
    fn usual_kinds(&self, texts: &[&str]) -> Vec<i64> {
        let kind = |(id, text): (usize, &&str)| match byte_of(text) {
            _ if id == self.unk => UNKNOWN,
            _ if id == self.bos || id == self.eos || Some(id) == self.pad => CONTROL,
            Some(_) => BYTE,
            None => NORMAL,
        };
        texts.iter().enumerate().map(kind).collect()
    }
}

const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;
const BYTE: i64 = 6;

/// The kind of a piece, by `llama_token_type`.
fn kind(kind: i64, id: usize, text: &str) -> Result<Kind, TokenizerError> {
    let other = |found: &str| {
        let found = format!("{found} ({text:?})");
        unsupported("a piece", &found, "a normal, unknown, control, unused or byte piece")
    };
    Ok(match kind {
        NORMAL => Kind::Normal,
        UNKNOWN => Kind::Unknown,
        // No text gives an unused piece, and it reads as nothing.
        CONTROL | UNUSED => Kind::Control,
        USER_DEFINED => return Err(other("user-defined")),
        BYTE => Kind::Byte(
            byte_of(text)
                .ok_or(TokenizerError::BadPiece { id, problem: "is a byte, but not of the form <0xHH>" })?,
        ),
        _ => return Err(other("of an unknown type")),
    })
}
