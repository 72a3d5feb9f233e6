//! Reads Hugging Face's `tokenizer.json`, as far as it describes a Llama 2 tokenizer.
//!
//! The format can describe any pipeline; this reads the one whose ids are SentencePiece's and refuses the rest by name.
//! Added tokens are known as control pieces and are never looked for in text: Hugging Face turns the text `<s>` into
//! BOS, SentencePiece does not, and neither do we.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use super::TokenizerError;
use super::vocab::{Kind, Parts, Piece, Rules, SpecialNames, byte_of};

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    model: Value,
}

#[derive(Deserialize)]
struct AddedToken {
    id: usize,
    content: String,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    dropout: Option<f64>,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: HashMap<String, usize>,
    merges: Vec<Merge>,
}

/// A merge as older versions write it (`"a b"`) and as newer ones do (`["a", "b"]`).
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Joined(String),
    Pair(String, String),
}

/// Reads a `tokenizer.json`.
///
/// # Errors
///
/// Not JSON of that form, or a pipeline other than Llama 2's: a model that is not BPE with byte fallback (GPT-2's
/// byte-level BPE, for one), a pre-tokenizer that splits, a normalizer that does more than spaces.
pub(super) fn read(bytes: &[u8]) -> Result<Parts, TokenizerError> {
    let file: File = serde_json::from_slice(bytes)?;
    let kind = file.model.get("type").and_then(Value::as_str).unwrap_or("BPE");
    if kind != "BPE" {
        return Err(unsupported("the model type", kind, "BPE"));
    }
    let model: Model = serde_json::from_value(file.model)?;
    let settings = [
        (model.byte_fallback, "byte fallback", "off", "on"),
        (model.dropout.is_none_or(|p| p == 0.0), "dropout", "set", "none"),
        (
            model.continuing_subword_prefix.as_deref().unwrap_or("").is_empty(),
            "a subword prefix",
            "set",
            "none",
        ),
        (model.end_of_word_suffix.as_deref().unwrap_or("").is_empty(), "a word suffix", "set", "none"),
        (!model.ignore_merges, "ignore_merges", "on", "off"),
    ];
    for (supported, what, found, wanted) in settings {
        if !supported {
            return Err(unsupported(what, found, wanted));
        }
    }
    let rules = rules(&file.normalizer, &file.pre_tokenizer)?;
    let names = SpecialNames { unk: model.unk_token.unwrap_or("<unk>".into()), ..SpecialNames::default() };
    let pieces = pieces(model.vocab, file.added_tokens, &names)?;
    let merges = model.merges.into_iter().map(|merge| match merge {
        Merge::Pair(left, right) => Ok((left, right)),
        Merge::Joined(pair) => match pair.split_once(' ') {
            Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
            None => Err(unsupported("a merge", &format!("{pair:?}"), "a pair")),
        },
    });
    Ok(Parts { pieces, merges: Some(merges.collect::<Result<_, _>>()?), rules, names })
}

fn unsupported(what: &'static str, found: &str, supported: &'static str) -> TokenizerError {
    TokenizerError::Unsupported { what, found: found.to_owned(), supported }
}

/// The pieces in the order of their ids, which must leave no gap.
fn pieces(
    vocab: HashMap<String, usize>,
    added: Vec<AddedToken>,
    names: &SpecialNames,
) -> Result<Vec<Piece>, TokenizerError> {
    let mut entries: HashMap<String, (usize, Kind)> = vocab
        .into_iter()
        .map(|(text, id)| {
            let kind = byte_of(&text).map_or(Kind::Normal, Kind::Byte);
            (text, (id, kind))
        })
        .collect();
    for AddedToken { id, content, special } in added {
        if !special {
            return Err(unsupported("an added token", &format!("{content:?}, not special"), "a special one"));
        }
        let kind = if content == names.unk { Kind::Unknown } else { Kind::Control };
        match entries.insert(content, (id, kind)) {
            Some((other, _)) if other != id => {
                return Err(TokenizerError::BadPiece { id, problem: "is an added token with a second id" });
            }
            _ => {}
        }
    }
    let mut entries: Vec<(usize, Kind, String)> =
        entries.into_iter().map(|(text, (id, kind))| (id, kind, text)).collect();
    entries.sort_unstable_by_key(|&(id, ..)| id);
    (entries.into_iter().enumerate())
        .map(|(expected, (id, kind, text))| match id == expected {
            true => Ok(Piece { text, kind, score: None }),
            false => Err(TokenizerError::BadPiece { id: expected, problem: "is missing, or there twice" }),
        })
        .collect()
}

/// What happens to spaces, from the two forms in which converters have written it down: a normalizer that prepends
/// `▁` and replaces spaces, or the `Metaspace` pre-tokenizer that does not split. (Hugging Face's `Metaspace` leaves out
/// the prefix where a text begins with a space; SentencePiece does not, and the model was trained on SentencePiece.)
fn rules(normalizer: &Value, pre_tokenizer: &Value) -> Result<Rules, TokenizerError> {
    let mut rules = Rules { add_dummy_prefix: false, escape_whitespaces: false, ..Rules::default() };
    let kind = |value: &Value| value.get("type").and_then(Value::as_str).unwrap_or("of no type").to_owned();
    let steps = match normalizer {
        Value::Null => &[][..],
        Value::Object(sequence) if kind(normalizer) == "Sequence" => {
            sequence.get("normalizers").and_then(Value::as_array).map_or(&[][..], Vec::as_slice)
        }
        single => std::slice::from_ref(single),
    };
    for step in steps {
        match kind(step).as_str() {
            // Either order gives the same text: the prefix is no space to be replaced.
            "Prepend" if step["prepend"] == "▁" => rules.add_dummy_prefix = true,
            "Replace" if step["pattern"]["String"] == " " && step["content"] == "▁" => {
                rules.escape_whitespaces = true;
            }
            other => {
                return Err(unsupported("the normalizer", other, "Prepend and Replace of spaces"));
            }
        }
    }
    match pre_tokenizer {
        Value::Null => {}
        metaspace if kind(metaspace) == "Metaspace" && metaspace["replacement"] == "▁" => {
            if metaspace["split"] != false {
                return Err(unsupported("the pre-tokenizer", "Metaspace that splits", "one that does not"));
            }
            rules.escape_whitespaces = true;
            rules.add_dummy_prefix |= metaspace["prepend_scheme"] != "never";
        }
        other => {
            return Err(unsupported("the pre-tokenizer", &kind(other), "Metaspace, or none"));
        }
    }
    match rules.escape_whitespaces {
        true => Ok(rules),
        false => {
            Err(unsupported("the normalizer", "without a rule for spaces", "Prepend and Replace of spaces"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(json: &str) -> String {
        let error = read(json.as_bytes()).unwrap_err();
        assert!(error.is_unsupported(), "{error}");
        error.to_string()
    }

    #[test]
    fn other_tokenizers_are_refused_by_name() {
        let gpt2 = r#"{"pre_tokenizer": {"type": "ByteLevel"}, "model": {"type": "BPE", "vocab": {}, "merges": []}}"#;
        assert_eq!(refused(gpt2), "byte fallback is off, and only on is supported");
        let bert = r#"{"model": {"type": "WordPiece", "vocab": {}}}"#;
        assert_eq!(refused(bert), "the model type is WordPiece, and only BPE is supported");
        let nfkc = r#"{"normalizer": {"type": "NFKC"}, "model": {"byte_fallback": true, "vocab": {}, "merges": []}}"#;
        assert!(refused(nfkc).starts_with("the normalizer is NFKC"));
        let split = r#"{"pre_tokenizer": {"type": "ByteLevel"},
                        "model": {"byte_fallback": true, "vocab": {}, "merges": []}}"#;
        assert!(refused(split).starts_with("the pre-tokenizer is ByteLevel"));
    }

    #[test]
    fn a_huge_id_is_an_error() {
        let json = r#"{"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
                       "model": {"byte_fallback": true, "vocab": {"a": 0, "b": 18446744073709551615}, "merges": []}}"#;
        assert!(matches!(read(json.as_bytes()), Err(TokenizerError::BadPiece { id: 1, .. })));
    }
}
