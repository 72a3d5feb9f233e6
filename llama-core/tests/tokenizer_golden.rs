//! The tokenizer against the reference: ids, texts and dialogs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panic")]

#[path = "fixtures/gguf.rs"]
mod gguf;
mod golden;

use std::collections::HashMap;

use golden::{Check, Golden, data, ids, same, text};
use llama_backend::TokenId;
use llama_core::tokenizer::{Tokenizer, TokenizerError};
use llama_dialog::{Dialog, DialogError, RawMessage};
use serde_json::{Value, json};

fn open(path: std::path::PathBuf) -> Tokenizer {
    Tokenizer::open(&path).unwrap_or_else(|e| panic!("{e}"))
}

fn decode(tokenizer: &Tokenizer, ids: &[TokenId]) -> String {
    tokenizer.decode(ids).unwrap()
}

/// The ids in a list that may hold ones that are no ids, such as -1: those become the largest there is.
fn any_ids(json: &Value) -> Vec<TokenId> {
    let list = json.as_array().unwrap();
    list.iter().map(|id| TokenId(id.as_u64().map_or(u32::MAX, |id| id as u32))).collect()
}

/// Streams the ids, checks that every piece is final, and returns the whole.
fn stream(tokenizer: &Tokenizer, ids: &[TokenId]) -> Result<String, String> {
    let mut detokenizer = tokenizer.detokenizer();
    let mut text = String::new();
    for (i, &id) in ids.iter().enumerate() {
        text.push_str(&detokenizer.push(id).map_err(|e| e.to_string())?);
        let prefix = decode(tokenizer, &ids[..=i]);
        if !prefix.starts_with(&text) {
            return Err(format!("streamed {text:?}, which is no prefix of {prefix:?}"));
        }
    }
    Ok(text + &detokenizer.finish())
}

fn case(tokenizer: &Tokenizer, case: &Value) -> Check {
    let list = |field: &str| case.get(field).map(ids);
    let (bos, eos) = (tokenizer.bos_id(), tokenizer.eos_id());
    let found = tokenizer.encode(text(&case["text"]));
    same("ids", &ids(&case["ids"]), &found)?;
    let with = |head: &[TokenId], tail: &[TokenId]| [head, &found, tail].concat();
    same(
        "ids_bos",
        &list("ids_bos").unwrap_or(with(&[bos], &[])),
        &tokenizer.encode_prompt(text(&case["text"])),
    )?;
    same("ids_eos", &list("ids_eos").unwrap_or(with(&[], &[eos])), &with(&[], &[eos]))?;
    same("ids_bos_eos", &list("ids_bos_eos").unwrap_or(with(&[bos], &[eos])), &with(&[bos], &[eos]))?;
    same("decoded", text(&case["decoded"]), &decode(tokenizer, &found))?;
    same("decoded_bos_eos", text(&case["decoded_bos_eos"]), &decode(tokenizer, &with(&[bos], &[eos])))?;
    same("streamed", text(&case["decoded"]), &stream(tokenizer, &found)?)?;
    for (k, prefix) in case.get("prefixes").and_then(Value::as_array).into_iter().flatten().enumerate() {
        same("prefix", text(prefix), &decode(tokenizer, &found[..=k]))?;
    }
    for (k, single) in case.get("singles").and_then(Value::as_array).into_iter().flatten().enumerate() {
        same("single", text(single), &tokenizer.decode_one(found[k]).unwrap())?;
    }
    Ok(())
}

fn decode_case(tokenizer: &Tokenizer, case: &Value) -> Check {
    let ids = ids(&case["ids"]);
    let pieces: Vec<&str> = ids.iter().filter_map(|&id| tokenizer.piece(id)).collect();
    let expected: Vec<&str> = case["pieces"].as_array().unwrap().iter().map(text).collect();
    same("pieces", &expected, &pieces)?;
    same("decoded", text(&case["decoded"]), &decode(tokenizer, &ids))?;
    same("streamed", text(&case["decoded"]), &stream(tokenizer, &ids)?)
}

fn decode_error(tokenizer: &Tokenizer, case: &Value) -> Check {
    match tokenizer.decode(&any_ids(&case["ids"])) {
        Err(TokenizerError::IdOutOfRange { vocab_size, .. }) => {
            same("vocab_size", &tokenizer.vocab_size(), &vocab_size)
        }
        other => Err(format!("expected an error, found {other:?}")),
    }
}

fn file(name: &str) {
    let Some(golden) = Golden::load(name) else { return };
    let Some(model) = golden.data("tokenizer") else {
        return;
    };
    let tokenizer = open(model);
    let number = |id: Option<TokenId>| id.map_or(-1, |id| i64::from(id.0));
    let special = [
        ("n_words", tokenizer.vocab_size() as i64),
        ("bos_id", number(Some(tokenizer.bos_id()))),
        ("eos_id", number(Some(tokenizer.eos_id()))),
        ("unk_id", number(Some(tokenizer.unk_id()))),
        ("pad_id", number(tokenizer.pad_id())),
    ];
    for (field, found) in special {
        assert_eq!(golden.json[field].as_i64(), Some(found), "{field}");
    }
    golden.check("cases", |c| case(&tokenizer, c));
    golden.check("decode_cases", |c| decode_case(&tokenizer, c));
    golden.check("decode_errors", |c| decode_error(&tokenizer, c));
}

#[test]
fn tokenizer_llama2() {
    file("tokenizer_llama2.json");
}

#[test]
fn tokenizer_stories260k() {
    file("tokenizer_stories260k.json");
}

#[test]
fn tokenizer_remove_extra_whitespaces() {
    let Some(golden) = Golden::load("tokenizer_remove_extra_whitespaces.json") else {
        return;
    };
    let Some(model) = golden.data("tokenizer") else {
        return;
    };
    let tokenizer = open(model);
    golden.check("cases", |c| case(&tokenizer, c));
}

#[test]
fn tokenizer_llama2_vocab() {
    let Some(golden) = Golden::load("tokenizer_llama2_vocab.json") else {
        return;
    };
    let Some(model) = golden.data("tokenizer") else {
        return;
    };
    let tokenizer = open(model);
    golden.check("rows", |row| {
        let id = TokenId(row[0].as_u64().unwrap() as u32);
        same("piece", text(&row[1]), tokenizer.piece(id).unwrap_or("none"))?;
        same("score", &Some(golden::float(&row[2])), &tokenizer.score(id))?;
        let single = tokenizer.decode_one(id).unwrap();
        // SentencePiece has changed its mind about the unknown piece on its own.
        if id == tokenizer.unk_id() && text(&row[3]) == " \u{2047} " {
            return same("decoded", " \u{2047} ", &decode(&tokenizer, &[id]));
        }
        same("decoded", text(&row[3]), &single)
    });
}

/// Every tokenizer.json gives what the tokenizer.model beside it gives, the texts `<s>` and `</s>` included.
#[test]
fn tokenizer_json() {
    let Some(golden) = Golden::load("tokenizer_stories260k.json") else {
        return;
    };
    for dir in [
        "stories260K-hf",
        "stories260K-hf-f16",
        "stories260K-hf-sharded",
        "stories260K-eos-hf",
        "random256-hf",
    ] {
        let Some(path) = data(&format!("{dir}/tokenizer.json")) else {
            return;
        };
        let tokenizer = open(path);
        golden.check("cases", |c| case(&tokenizer, c));
        golden.check("decode_cases", |c| decode_case(&tokenizer, c));
        golden.check("decode_errors", |c| decode_error(&tokenizer, c));
    }
}

/// Every GGUF file gives what the tokenizer.model gives that it was converted from.
#[test]
fn tokenizer_gguf() {
    let Some(golden) = Golden::load("tokenizer_stories260k.json") else {
        return;
    };
    for file in ["stories260K-gguf/stories260K-f32.gguf", "random256-gguf/random256-q4_k_m.gguf"] {
        let Some(path) = data(file) else {
            return;
        };
        let tokenizer = open(path);
        golden.check("cases", |c| case(&tokenizer, c));
        golden.check("decode_cases", |c| decode_case(&tokenizer, c));
        golden.check("decode_errors", |c| decode_error(&tokenizer, c));
    }
}

/// The real vocabulary, as a converter would put it into a GGUF file.
#[test]
fn tokenizer_gguf_of_llama2() {
    let Some(golden) = Golden::load("tokenizer_llama2.json") else {
        return;
    };
    let Some(model) = golden.data("tokenizer") else {
        return;
    };
    let mut file = gguf::Gguf::tiny();
    file.set_tokenizer(&open(model));
    let tokenizer = Tokenizer::from_bytes(&file.to_bytes()).unwrap();
    golden.check("cases", |c| case(&tokenizer, c));
    golden.check("decode_cases", |c| decode_case(&tokenizer, c));
    golden.check("decode_errors", |c| decode_error(&tokenizer, c));
}

/// A `tokenizer.json` of a vocabulary, as Hugging Face's converter makes it of a `tokenizer.model`: the merges by score,
/// then by the lengths of their parts, the greater first. Newer versions write a merge as a pair, older ones as a string.
fn converted(tokenizer: &Tokenizer, as_pairs: bool) -> String {
    let pieces: Vec<&str> =
        (0..tokenizer.vocab_size() as u32).map(|id| tokenizer.piece(TokenId(id)).unwrap()).collect();
    let vocab: HashMap<&str, usize> = pieces.iter().enumerate().map(|(id, &piece)| (piece, id)).collect();
    let mut merges: Vec<(f32, usize, usize, &str, &str)> = Vec::new();
    for (id, piece) in pieces.iter().enumerate().skip(259) {
        let cuts = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
        let mut cuts: Vec<_> = cuts.filter(|(l, r)| vocab.contains_key(l) && vocab.contains_key(r)).collect();
        cuts.sort_by_key(|(left, right)| (vocab[left], vocab[right]));
        let score = tokenizer.score(TokenId(id as u32)).unwrap();
        merges.extend(cuts.iter().map(|(l, r)| (score, l.chars().count(), r.chars().count(), *l, *r)));
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((b.1, b.2).cmp(&(a.1, a.2))));
    let merge = |l: &str, r: &str| {
        if as_pairs { json!([l, r]) } else { json!(format!("{l} {r}")) }
    };
    let special = |id: usize| json!({"id": id, "content": pieces[id], "special": true});
    json!({
        "added_tokens": [special(0), special(1), special(2)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "pre_tokenizer": null,
        "model": {
            "type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
            "merges": merges.iter().map(|(.., l, r)| merge(l, r)).collect::<Vec<_>>(),
        },
    })
    .to_string()
}

#[test]
fn tokenizer_json_of_llama2() {
    let Some(golden) = Golden::load("tokenizer_llama2.json") else {
        return;
    };
    let Some(model) = golden.data("tokenizer") else {
        return;
    };
    let model = open(model);
    for as_pairs in [false, true] {
        let tokenizer = Tokenizer::from_bytes(converted(&model, as_pairs).as_bytes()).unwrap();
        golden.check("cases", |c| case(&tokenizer, c));
        golden.check("decode_cases", |c| decode_case(&tokenizer, c));
    }
}

fn read_dialog(json: &Value) -> Result<Dialog, DialogError> {
    let raw: Vec<RawMessage> = serde_json::from_value(json.clone()).unwrap();
    Dialog::try_from(raw)
}

/// Where the reference encodes a dialog with special tags all the same, we refuse to.
fn rendered(tokenizer: &Tokenizer, dialog: &Dialog, prompt: &Value, flagged: &Value) -> Check {
    match (tokenizer.encode_dialog(dialog), flagged == true) {
        (Ok(found), false) => same("prompt_tokens", &ids(prompt), &found),
        (Err(_), true) => Ok(()),
        (found, _) => Err(format!("unsafe: {flagged}, found {found:?}")),
    }
}

fn dialogs(name: &str) {
    let Some(golden) = Golden::load(name) else { return };
    let Some(model) = golden.data("tokenizer") else {
        return;
    };
    let tokenizer = open(model);
    golden.check("cases", |case| {
        let read: Result<Dialog, _> = serde_json::from_value(case["dialog"].clone());
        match (read_dialog(&case["dialog"]), case.get("error")) {
            (Ok(dialog), None) => {
                same("read", &Some(&dialog), &read.as_ref().ok())?;
                rendered(&tokenizer, &dialog, &case["prompt_tokens"], &case["unsafe"])
            }
            (Err(error), Some(_)) => {
                same("read", &Some(error.to_string()), &read.err().map(|e| e.to_string()))
            }
            (found, expected) => Err(format!("expected the error {expected:?}, found {found:?}")),
        }
    });
    golden.check("batches", |batch| {
        let list = batch["dialogs"].as_array().unwrap();
        let dialogs: Result<Vec<Dialog>, _> = list.iter().map(read_dialog).collect();
        match (dialogs, batch.get("error")) {
            (Err(_), Some(_)) => Ok(()),
            (Ok(dialogs), None) => dialogs.iter().enumerate().try_for_each(|(i, dialog)| {
                rendered(&tokenizer, dialog, &batch["prompt_tokens"][i], &batch["unsafe"][i])
            }),
            (found, expected) => Err(format!("expected the error {expected:?}, found {found:?}")),
        }
    });
}

#[test]
fn dialogs_llama2() {
    dialogs("dialogs_llama2.json");
}

#[test]
fn dialogs_stories260k() {
    dialogs("dialogs_stories260k.json");
}
