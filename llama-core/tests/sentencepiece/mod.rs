//! SentencePiece in its plainest form: a writer of models, the merge rule and the decoder as one would say them aloud.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::HashMap;

pub(crate) const NORMAL: u8 = 1;
pub(crate) const UNKNOWN: u8 = 2;
pub(crate) const CONTROL: u8 = 3;
pub(crate) const BYTE: u8 = 6;

/// A `ModelProto` under construction.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) pieces: Vec<(String, f32, u8)>,
    pub(crate) remove_extra_whitespaces: bool,
    /// What BOS and EOS are called.
    pub(crate) bos_eos: [String; 2],
}

impl Model {
    /// `<unk>`, `<s>`, `</s>`, the 256 bytes, and these normal pieces.
    pub(crate) fn new(normal: impl IntoIterator<Item = (String, f32)>) -> Model {
        let mut pieces =
            vec![("<unk>".into(), 0.0, UNKNOWN), ("<s>".into(), 0.0, CONTROL), ("</s>".into(), 0.0, CONTROL)];
        pieces.extend((0..=255u8).map(|byte| (format!("<0x{byte:02X}>"), 0.0, BYTE)));
        pieces.extend(normal.into_iter().map(|(piece, score)| (piece, score, NORMAL)));
        Model { pieces, remove_extra_whitespaces: false, bos_eos: ["<s>".into(), "</s>".into()] }
    }

    /// The protobuf.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (piece, score, kind) in &self.pieces {
            let mut message = bytes_field(1, piece.as_bytes());
            message.push(2 << 3 | 5);
            message.extend(score.to_le_bytes());
            message.extend([3 << 3, *kind]);
            out.extend(bytes_field(1, &message));
        }
        // TrainerSpec: model_type = BPE, byte_fallback = true (field 35); bos_piece (46) and eos_piece (47) where they are not the usual ones.
        let mut trainer = vec![3 << 3, 2, 0x98, 0x02, 1];
        let usual = ["<s>", "</s>"];
        for ((name, usual), key) in self.bos_eos.iter().zip(usual).zip([[0xf2, 0x02], [0xfa, 0x02]]) {
            if name != usual {
                trainer.extend(key);
                trainer.extend(&bytes_field(0, name.as_bytes())[1..]);
            }
        }
        out.extend(bytes_field(2, &trainer));
        // NormalizerSpec: identity, add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces.
        let mut spec = bytes_field(1, b"identity");
        spec.extend([3 << 3, 1, 4 << 3, u8::from(self.remove_extra_whitespaces), 5 << 3, 1]);
        out.extend(bytes_field(3, &spec));
        out
    }
}

fn bytes_field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut len = bytes.len();
    while len >= 0x80 {
        out.push(len as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
    out.extend(bytes);
    out
}

/// The merge rule over a vocabulary.
pub(crate) struct Merger<'a> {
    normal: HashMap<&'a str, (u32, f32)>,
    first_byte: u32,
}

impl<'a> Merger<'a> {
    pub(crate) fn new(pieces: &'a [(String, f32, u8)]) -> Merger<'a> {
        let ids = (0u32..).zip(pieces);
        Merger {
            normal: ids.filter(|(_, p)| p.2 == NORMAL).map(|(id, p)| (p.0.as_str(), (id, p.1))).collect(),
            first_byte: pieces.iter().position(|p| p.0 == "<0x00>").expect("byte pieces") as u32,
        }
    }

    /// The ids of a text that is already prepared: join the neighbours whose joined text has the highest score, the
    /// leftmost of equals, until none is a piece; spell in bytes what then is none.
    pub(crate) fn encode(&self, prepared: &str) -> Vec<u32> {
        let mut symbols: Vec<String> = prepared.chars().map(String::from).collect();
        loop {
            let mut best: Option<(f32, usize, String)> = None;
            for at in 1..symbols.len() {
                let joined = format!("{}{}", symbols[at - 1], symbols[at]);
                if let Some(&(_, score)) = self.normal.get(joined.as_str())
                    && best.as_ref().is_none_or(|best| score > best.0)
                {
                    best = Some((score, at, joined));
                }
            }
            let Some((_, at, joined)) = best else { break };
            symbols[at - 1] = joined;
            symbols.remove(at);
        }
        let mut ids = Vec::new();
        for symbol in &symbols {
            match self.normal.get(symbol.as_str()) {
                Some(&(id, _)) => ids.push(id),
                None => ids.extend(symbol.bytes().map(|byte| self.first_byte + u32::from(byte))),
            }
        }
        ids
    }
}

/// The text of ids: first every run of bytes becomes text, then the pieces are joined.
pub(crate) fn decode(pieces: &[(String, f32, u8)], remove_extra_whitespaces: bool, ids: &[u32]) -> String {
    let mut text = String::new();
    let mut run: Vec<u8> = Vec::new();
    let mut at_start = true;
    for (i, &id) in ids.iter().enumerate() {
        let (piece, _, kind) = &pieces[id as usize];
        if *kind == BYTE {
            run.push(u8::from_str_radix(&piece[3..5], 16).expect("hex"));
            if ids.get(i + 1).is_some_and(|&next| pieces[next as usize].2 == BYTE) {
                continue;
            }
        }
        let mut rest = &run[..];
        while !rest.is_empty() {
            // The longest valid character that begins here, or one bad byte.
            let len = (1..=rest.len().min(4)).find(|&len| std::str::from_utf8(&rest[..len]).is_ok());
            match len {
                Some(len) => text.push_str(std::str::from_utf8(&rest[..len]).expect("checked")),
                None => text.push('\u{fffd}'),
            }
            rest = &rest[len.unwrap_or(1)..];
        }
        run.clear();
        if *kind == UNKNOWN {
            text.push_str(" \u{2047} ");
        }
        if *kind == NORMAL {
            let mut piece = piece.as_str();
            if at_start
                && text.is_empty()
                && let Some(rest) = piece.strip_prefix('▁')
            {
                piece = rest;
                at_start = remove_extra_whitespaces;
            }
            text.push_str(&piece.replace('▁', " "));
        }
    }
    text
}
