//! GGUF files that are damaged, that lie, or that hold another kind of model: each is an error that names file, key or tensor.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "fixtures/gguf.rs"]
mod gguf;

use gguf::{ARRAY, BOOL, F32, Gguf, I32, Key, STRING, U32, array, string};
use llama_backend::WeightError;
use llama_core::checkpoint::{self, CheckpointError, GgufError};

fn error(bytes: Vec<u8>) -> CheckpointError {
    let error = checkpoint::from_gguf_bytes(bytes).unwrap_err();
    assert!(error.to_string().contains("embedded.gguf"), "{error}");
    error
}

/// The error of the tiny model once it is changed.
fn changed(change: impl FnOnce(&mut Gguf)) -> CheckpointError {
    let mut gguf = Gguf::tiny();
    change(&mut gguf);
    error(gguf.to_bytes())
}

fn header_error(bytes: Vec<u8>) -> GgufError {
    match error(bytes) {
        CheckpointError::Gguf { source, .. } => source,
        other => panic!("{other}"),
    }
}

/// The tiny model's bytes with some replaced.
fn put(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = Gguf::tiny().to_bytes();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

#[test]
fn other_files_and_versions_are_recognised_as_such() {
    for content in [&b""[..], b"GGU", b"PK\x03\x04", b"version https://git-lfs.github.com/spec/v1"] {
        let found = header_error(content.to_vec());
        assert!(matches!(found, GgufError::NotGguf { .. }), "{found}");
    }
    for version in [0_u32, 1, 4, 77] {
        let found = header_error(put(4, &version.to_le_bytes()));
        assert!(matches!(found, GgufError::Version { found } if found == version), "{found}");
        assert!(found.is_unsupported() && found.to_string().contains(&version.to_string()));
    }
    let found = header_error(put(4, &3_u32.to_be_bytes()));
    assert_eq!(found, GgufError::ByteOrder);
}

#[test]
fn counts_that_no_file_holds_are_errors() {
    for at in [8, 16] {
        for count in [u64::MAX, 1 << 63, 1 << 32, (1 << 16) + 1] {
            let found = header_error(put(at, &count.to_le_bytes()));
            assert!(matches!(found, GgufError::TooMany { found, .. } if found == count), "{found}");
        }
    }
    // One tensor or key more than there are: what follows is taken for it.
    for at in [8, 16] {
        let count = Gguf::tiny().to_bytes()[at];
        assert!(!error(put(at, &[count + 1])).to_string().is_empty());
    }
    // The length of the first key.
    for len in [u64::MAX, 1 << 40, 100_000] {
        let found = header_error(put(24, &len.to_le_bytes()));
        assert!(matches!(&found, GgufError::Truncated { needed, .. } if *needed == len), "{found}");
    }
}

#[test]
fn values_that_lie_are_errors_that_name_their_key() {
    let with = |kind: u32, value: Vec<u8>| {
        changed(|gguf| gguf.keys.insert(0, Key { name: b"test.key".to_vec(), kind, value }))
    };
    let count = |kind: u32, n: u64| [kind.to_le_bytes().to_vec(), n.to_le_bytes().to_vec()].concat();
    let huge = u64::MAX / 8;
    for (what, found) in [
        ("a value type", with(13, Vec::new())),
        ("a huge value type", with(u32::MAX, Vec::new())),
        ("a bool", with(BOOL, vec![2])),
        ("a bool in an array", with(ARRAY, array(BOOL, &[vec![1], vec![255]]))),
        ("a string", with(STRING, huge.to_le_bytes().to_vec())),
        ("text", with(STRING, string(b"\xff\xfe"))),
        ("text in an array", with(ARRAY, array(STRING, &[string("a"), string(b"\xc3")]))),
        ("an array of an unknown type", with(ARRAY, count(99, 1))),
        ("an endless array of bytes", with(ARRAY, count(0, u64::MAX))),
        ("an endless array of numbers", with(ARRAY, count(U32, 1 << 62))),
        ("an endless array of text", with(ARRAY, count(STRING, huge))),
        ("an endless array of arrays", with(ARRAY, count(ARRAY, huge))),
        ("arrays in arrays", with(ARRAY, count(ARRAY, 1).repeat(9).into_iter().chain(count(0, 0)).collect())),
    ] {
        let CheckpointError::Gguf { source, .. } = &found else { panic!("{what}: {found}") };
        assert!(found.to_string().contains("test.key"), "{what}: {found}");
        assert!(found.is_malformed() && !source.is_unsupported(), "{what}");
    }
    let found = changed(|gguf| gguf.keys.push(gguf.keys[3].clone()));
    assert!(
        matches!(&found, CheckpointError::Gguf { source: GgufError::DuplicateKey { .. }, .. }),
        "{found}"
    );
    let key = Key { name: b"\xff".to_vec(), kind: BOOL, value: vec![1] };
    let found = changed(|gguf| gguf.keys.push(key));
    assert!(matches!(&found, CheckpointError::Gguf { source: GgufError::Utf8 { .. }, .. }), "{found}");
    let key = Key { name: vec![b'a'; 70_000], kind: BOOL, value: vec![1] };
    let found = changed(|gguf| gguf.keys.push(key));
    assert!(matches!(&found, CheckpointError::Gguf { source: GgufError::TooMany { .. }, .. }), "{found}");
}

#[test]
fn other_models_are_refused_by_the_key_that_makes_them_so() {
    let number = |n: u32| n.to_le_bytes().to_vec();
    let float = |x: f32| x.to_le_bytes().to_vec();
    let others: Vec<(&str, u32, Vec<u8>)> = vec![
        ("general.architecture", STRING, string("mamba")),
        ("general.architecture", U32, number(1)),
        ("general.alignment", U32, number(0)),
        ("general.alignment", U32, number(12)),
        ("general.alignment", U32, number(u32::MAX)),
        ("general.alignment", I32, (-32_i32).to_le_bytes().to_vec()),
        ("split.count", 2, 3_u16.to_le_bytes().to_vec()),
        ("llama.tensor_data_layout", STRING, string("interleaved")),
        ("llama.rope.scaling.type", STRING, string("yarn")),
        ("llama.rope.scaling.factor", F32, float(4.0)),
        ("llama.rope.scale_linear", F32, float(2.0)),
        ("llama.rope.dimension_count", U32, number(2)),
        ("llama.attention.value_length", U32, number(8)),
        ("llama.expert_count", U32, number(8)),
        ("llama.attention.sliding_window", U32, number(4096)),
        ("llama.attention.head_count_kv", ARRAY, array(U32, &[number(1)])),
        ("llama.attention.head_count", U32, number(3)),
        ("llama.attention.head_count", U32, number(0)),
        ("llama.block_count", F32, float(1.0)),
        ("llama.embedding_length", I32, (-8_i32).to_le_bytes().to_vec()),
        ("llama.context_length", U32, number(0)),
        ("llama.context_length", U32, number(u32::MAX)),
        ("llama.rope.freq_base", F32, float(f32::NAN)),
        ("llama.rope.freq_base", 12, f64::INFINITY.to_le_bytes().to_vec()),
        ("llama.attention.layer_norm_rms_epsilon", F32, float(f32::NAN)),
        ("llama.attention.layer_norm_rms_epsilon", U32, number(1)),
        ("llama.attention.causal", BOOL, vec![0]),
    ];
    for (key, kind, value) in others {
        let found = changed(|gguf| gguf.set(key, kind, &value));
        assert!(
            matches!(&found, CheckpointError::Field { field, expected, .. } if field == key && !expected.is_empty()),
            "{key}: {found}"
        );
    }
    for key in [
        "general.architecture",
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
    ] {
        let found = changed(|gguf| gguf.remove(key));
        assert!(
            matches!(&found, CheckpointError::Field { field, found, .. } if field == key && found == "absent"),
            "{key}: {found}"
        );
    }
    // Numbers that no file could be as large as.
    for (key, value) in
        [("block_count", u32::MAX), ("feed_forward_length", 1 << 31), ("vocab_size", u32::MAX)]
    {
        let found = changed(|gguf| gguf.set(&format!("llama.{key}"), U32, number(value)));
        assert!(matches!(found, CheckpointError::Config { .. }), "{key}: {found}");
    }
    let found = changed(|gguf| gguf.set("llama.block_count", U32, number(2)));
    assert!(
        matches!(&found, CheckpointError::Weights(WeightError::Missing { tensor, .. }) if tensor == "blk.1.attn_norm.weight"),
        "{found}"
    );
}

#[test]
fn blocks_of_another_version_are_refused() {
    let mut gguf = Gguf::in_blocks();
    gguf.set_blocks("blk.0.ffn_up.weight", 2, 32, 18);
    checkpoint::from_gguf_bytes(gguf.to_bytes()).unwrap();
    gguf.set("general.quantization_version", U32, 1_u32.to_le_bytes());
    let found = error(gguf.to_bytes());
    assert!(
        matches!(&found, CheckpointError::Field { field, .. } if field == "general.quantization_version"),
        "{found}"
    );
}

#[test]
fn tensors_that_lie_are_named() {
    let name = "blk.0.ffn_down.weight";
    let with = |change: fn(&mut gguf::Tensor)| changed(|gguf| change(gguf.tensor(name)));
    for (what, found) in [
        ("an offset beyond the file", with(|tensor| tensor.offset = Some(1 << 20))),
        ("a huge offset", with(|tensor| tensor.offset = Some(u64::MAX / 32 * 32))),
        ("an odd offset", with(|tensor| tensor.offset = Some(4))),
        ("another's place", with(|tensor| tensor.offset = Some(0))),
        ("a dimension of 0", with(|tensor| tensor.dimensions = vec![0, 8])),
        ("dimensions that overflow", with(|tensor| tensor.dimensions = vec![1 << 40; 4])),
        ("more elements than the file", with(|tensor| tensor.dimensions = vec![24, 1 << 30])),
        ("rows of broken blocks", with(|tensor| tensor.type_id = 2)),
    ] {
        assert!(
            matches!(&found, CheckpointError::Layout { tensor, .. } if tensor == name || what == "another's place"),
            "{what}: {found}"
        );
        assert!(found.is_malformed());
    }
    for n in [0, 5, 1000] {
        let found = changed(|gguf| gguf.tensor(name).dimensions = vec![1; n]);
        let dimensions = GgufError::Dimensions { tensor: name.to_owned(), found: n as u32 };
        assert!(matches!(&found, CheckpointError::Gguf { source, .. } if *source == dimensions), "{found}");
    }
    let found = changed(|gguf| gguf.tensors.push(gguf.tensors[3].clone()));
    assert!(matches!(&found, CheckpointError::Layout { what, .. } if what.contains("twice")), "{found}");
}

#[test]
fn wrong_tensors_are_named() {
    let name = "blk.0.ffn_down.weight";
    let found = changed(|gguf| gguf.tensor(name).name = "blk.0.ffn_other.weight".to_owned());
    assert!(
        matches!(&found, CheckpointError::Weights(WeightError::Missing { tensor, .. }) if tensor == name),
        "{found}"
    );
    let found = changed(|gguf| gguf.tensor(name).dimensions = vec![8, 24]);
    let CheckpointError::Weights(WeightError::Shape { tensor, found, expected, .. }) = &found else {
        panic!("{found}")
    };
    assert_eq!((&**tensor, &**found, &**expected), (name, &[24, 8][..], &[8, 24][..]));
    for (type_id, named) in [(16, "iq2_xxs"), (28, "f64"), (4, "q4_2"), (4_000_000, "4000000")] {
        let found = changed(|gguf| gguf.tensor(name).type_id = type_id);
        assert!(
            matches!(&found, CheckpointError::Weights(WeightError::DType { tensor, found, .. })
                if tensor == name && found.contains(named)),
            "{found}"
        );
    }
    for (extra, accepted) in [
        ("blk.0.attn_q.bias", false),
        ("blk.1.attn_norm.weight", false),
        ("rope_freqs.weight", false),
        ("blk.0.attn_rot_embd.weight", true),
    ] {
        let mut gguf = Gguf::tiny();
        gguf.push(extra, &[4]);
        match checkpoint::from_gguf_bytes(gguf.to_bytes()) {
            Ok(_) => assert!(accepted, "{extra}"),
            Err(CheckpointError::ExtraTensor { tensor, .. }) => assert!(!accepted && tensor == extra),
            Err(other) => panic!("{other}"),
        }
    }
}
