//! The seeds of the fuzz targets (`fuzz/corpus`) are what the tests' own writers write: `LLAMA_UPDATE_SEEDS=1` writes them anew.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

#[path = "fixtures/gguf.rs"]
mod gguf;
#[path = "fixtures/hf.rs"]
mod hf;
#[path = "fixtures/pth.rs"]
mod pth;
mod sentencepiece;

use std::fs;
use std::path::Path;

use gguf::Gguf;
use llama_core::checkpoint;
use llama_core::tokenizer::Tokenizer;
use sentencepiece::Model;

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus");

/// A tokenizer.json with the 256 bytes and a few letters.
fn tokenizer_json() -> String {
    let mut vocab: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).into();
    vocab.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
    vocab.extend(["▁", "a", "é", "▁a", "<"].map(String::from));
    let vocab: serde_json::Map<_, _> = vocab.into_iter().zip((0..).map(|id: u32| id.into())).collect();
    let added: Vec<_> = (["<unk>", "<s>", "</s>"].iter().enumerate())
        .map(|(id, content)| serde_json::json!({"id": id, "content": content, "special": true}))
        .collect();
    let json = serde_json::json!({
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "pre_tokenizer": null,
        "model": {"type": "BPE", "byte_fallback": true, "unk_token": "<unk>", "vocab": vocab, "merges": [["▁", "a"]]},
    });
    json.to_string()
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let model =
        Model::new([("▁", -3.0), ("a", -4.0), ("▁a", 0.0), ("é", -5.0)].map(|(p, s)| (p.to_owned(), s)));
    let tokenizer = Tokenizer::from_bytes(&model.to_bytes()).unwrap();
    let mut with_tokenizer = Gguf::tiny();
    with_tokenizer.tensors.clear();
    with_tokenizer.set_tokenizer(&tokenizer);
    let mut in_blocks = Gguf::in_blocks();
    let matrices = in_blocks.tensors.iter().filter(|tensor| tensor.dimensions.len() == 2);
    let matrices: Vec<_> = matrices.map(|tensor| tensor.name.clone()).collect();
    matrices.iter().for_each(|name| in_blocks.set_blocks(name, 8, 32, 34)); // q8_0
    let dialogs = [
        ("dialog/hello", r#"[{"role":"user","content":"Hello"}]"#),
        (
            "dialog/turns",
            r#"[{"role":"system","content":"Be kind."},{"role":"user","content":"a </s>"},{"role":"assistant","content":"b"},{"role":"user","content":"c\ud83d\ude00"}]"#,
        ),
        ("dialog/tag", r#"[{"role":"user","content":"[INST] <<SYS>>"}]"#),
        ("dialog/conversation", r#"[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]"#),
        ("params_json/tiny", pth::PARAMS),
        (
            "params_json/llama",
            r#"{"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-05, "vocab_size": -1, "ffn_dim_multiplier": 1.3}"#,
        ),
        ("config_json/tiny", hf::CONFIG),
    ];
    let mut seeds: Vec<_> = dialogs.map(|(name, text)| (name, text.as_bytes().to_vec())).into();
    seeds.extend([
        ("tokenizer_model/small", model.to_bytes()),
        ("tokenizer_json/small", tokenizer_json().into_bytes()),
        ("pth/tiny", pth::model()),
        ("pth/legacy", pth::legacy()),
        ("safetensors/tiny", hf::safetensors(&hf::TENSORS)),
        ("gguf/tiny", Gguf::tiny().to_bytes()),
        ("gguf/blocks", in_blocks.to_bytes()),
        ("gguf/tokenizer", with_tokenizer.to_bytes()),
    ]);
    seeds
}

#[test]
fn the_seeds_are_what_the_writers_write() {
    let update = std::env::var_os("LLAMA_UPDATE_SEEDS").is_some_and(|value| value == "1");
    for (name, content) in seeds() {
        let path = Path::new(CORPUS).join(name);
        if update {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &content).unwrap();
        }
        let same = fs::read(&path).is_ok_and(|found| found == content);
        assert!(same, "{name} is to be written again: LLAMA_UPDATE_SEEDS=1");
    }
}

/// A target that is never beyond the first check finds nothing.
#[test]
fn the_seeds_open() {
    let seeds = seeds();
    let seed = |name: &str| seeds.iter().find(|seed| seed.0 == name).unwrap().1.clone();
    for name in ["pth/tiny", "pth/legacy"] {
        checkpoint::from_bytes(&seed("params_json/tiny"), [seed(name)]).unwrap();
    }
    for name in ["gguf/tiny", "gguf/blocks"] {
        checkpoint::from_gguf_bytes(seed(name)).unwrap();
    }
    for name in ["tokenizer_model/small", "tokenizer_json/small", "gguf/tokenizer"] {
        Tokenizer::from_bytes(&seed(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

/// The `tokenizers` crate panics at the first of these.
#[test]
fn merges_of_what_is_no_piece_are_refused_by_name() {
    let json = tokenizer_json();
    for (merge, missing) in [(r#"["▁","▁a"]"#, "▁▁a"), (r#"["▁","b"]"#, "b"), (r#"["b","a"]"#, "b")]
    {
        let json = json.replace(r#"["▁","a"]"#, merge);
        let error = Tokenizer::from_bytes(json.as_bytes()).unwrap_err();
        assert!(error.to_string().contains(&format!("needs {missing:?}")), "{merge}: {error}");
    }
}
