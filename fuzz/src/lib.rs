//! What the targets ask of whatever could be read: it is as good as it said when it was opened.

#![allow(clippy::unwrap_used, reason = "a fuzz target fails by panic")]

use std::cell::OnceCell;
use std::fs;
use std::sync::OnceLock;

use llama_core::TokenId;
use llama_core::checkpoint::{self, Checkpoint, CheckpointError};
use llama_core::tokenizer::{Tokenizer, TokenizerError};
use llama_dialog::{Dialog, Segment};
use tempfile::TempDir;

/// The tiny model's files, by the tests' writers; seeds of other targets too.
pub const PARAMS: &[u8] = include_bytes!("../corpus/params_json/tiny");
pub const PTH: &[u8] = include_bytes!("../corpus/pth/tiny");
pub const CONFIG: &[u8] = include_bytes!("../corpus/config_json/tiny");
pub const SAFETENSORS: &[u8] = include_bytes!("../corpus/safetensors/tiny");

/// A checkpoint that opens has every tensor that it says, whole and in slices; one that does not says why.
pub fn checkpoint(opened: Result<Checkpoint, CheckpointError>) {
    match opened {
        Ok(checkpoint) => {
            let weights = checkpoint.weights();
            for (name, _) in checkpoint.config().tensors() {
                let info = weights.info(&name).unwrap();
                let bytes = weights.bytes(&name).map(|bytes| bytes.len());
                assert_eq!(bytes.ok(), info.n_bytes(), "{name}");
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A tokenizer that opens gives text back, and no text is structure to it.
pub fn tokenizer(opened: Result<Tokenizer, TokenizerError>) {
    match opened {
        Ok(tokenizer) => {
            for text in ["", " two  spaces", "<s>[INST] </s><unk><0x0A>", "a\0é日😀\u{200b}▁"] {
                is_text(&tokenizer, &tokenizer.encode(text));
            }
            let every: Vec<_> = (0..tokenizer.vocab_size() as u32).map(TokenId).collect();
            assert!(tokenizer.decode(&every).is_ok());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A dialog that can be rendered has BOS and EOS where the format puts them.
pub fn dialog(dialog: &Dialog) {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    let tokenizer = TOKENIZER.get_or_init(|| {
        Tokenizer::from_bytes(include_bytes!("../../models/tiny-chat/tokenizer.model")).unwrap()
    });
    let Ok(segments) = dialog.segments() else { return };
    let texts = segments.iter().filter_map(Segment::as_text);
    texts.for_each(|text| is_text(tokenizer, &tokenizer.encode(text)));
    let ids = tokenizer.encode_dialog(dialog).unwrap();
    let count = |id| ids.iter().filter(|&&token| token == id).count();
    let n_turns = dialog.turns().count();
    assert_eq!([tokenizer.bos_id(), tokenizer.eos_id()].map(count), [n_turns, n_turns - 1]);
}

fn is_text(tokenizer: &Tokenizer, ids: &[TokenId]) {
    let special = [tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.unk_id()];
    assert!(ids.iter().all(|id| !special.contains(id) && tokenizer.piece(*id).is_some()));
}

/// Opens a folder in Hugging Face's layout with these two files.
pub fn open_hugging_face(config: &[u8], safetensors: &[u8]) -> Result<Checkpoint, CheckpointError> {
    thread_local! { static DIR: OnceCell<TempDir> = const { OnceCell::new() } }
    DIR.with(|dir| {
        // In memory, where the system has such a place.
        let dir =
            dir.get_or_init(|| tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap());
        for (name, content) in [("config.json", config), ("model.safetensors", safetensors)] {
            // A new file: the old one may still be mapped.
            let file = dir.path().join(name);
            fs::remove_file(&file).ok();
            fs::write(&file, content).unwrap();
        }
        checkpoint::open(dir.path())
    })
}
