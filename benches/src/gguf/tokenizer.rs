//! The smallest tokenizer of SentencePiece's kind that readers take: the control pieces, every byte, the space, and names for the rest.
//!
//! A random model says nothing, so that its pieces need no meaning; but programs that load the file read them, and any text can be
//! encoded, byte by byte.

use super::Value;

/// `<unk>`, `<s>`, `</s>`, 256 bytes and the space.
pub const MIN_VOCAB_SIZE: usize = 3 + 256 + 1;

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const BYTE: i32 = 6;

/// The metadata of a tokenizer of `vocab_size` pieces, at least [`MIN_VOCAB_SIZE`] of them.
#[must_use]
pub fn tokenizer_keys(vocab_size: usize) -> Vec<(String, Value)> {
    let control = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)];
    let control = control.map(|(text, kind)| (text.to_owned(), kind));
    let bytes = (0..=u8::MAX).map(|byte| (format!("<0x{byte:02X}>"), BYTE));
    let space = [("▁".to_owned(), NORMAL)];
    let others = (0..vocab_size.saturating_sub(MIN_VOCAB_SIZE)).map(|i| (format!("▁w{i}"), NORMAL));
    let (texts, kinds): (Vec<_>, Vec<_>) =
        control.into_iter().chain(bytes).chain(space).chain(others).unzip();
    // The lower a score, the later two pieces are joined to it.
    let score = |(i, kind): (usize, &i32)| if *kind == NORMAL { -(i as f32) } else { 0.0 };
    let scores = kinds.iter().enumerate().map(score).collect();
    let key = |key: &str, value| (format!("tokenizer.ggml.{key}"), value);
    vec![
        key("model", Value::Text("llama".to_owned())),
        key("tokens", Value::Texts(texts)),
        key("scores", Value::F32s(scores)),
        key("token_type", Value::I32s(kinds)),
        key("unknown_token_id", Value::U32(0)),
        key("bos_token_id", Value::U32(1)),
        key("eos_token_id", Value::U32(2)),
        key("add_bos_token", Value::Bool(true)),
        key("add_eos_token", Value::Bool(false)),
    ]
}
