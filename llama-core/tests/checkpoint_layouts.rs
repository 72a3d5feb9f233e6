//! What a folder holds: which layout is recognised, and what is said when a file is missing, superfluous or unsupported.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "fixtures/hf.rs"]
mod hf;
#[path = "fixtures/pth.rs"]
mod pth;

use std::fs;

use hf::{CONFIG, TENSORS, safetensors};
use llama_core::checkpoint::{self, CheckpointError, Format};
use tempfile::TempDir;

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

fn error(files: &[(&str, &[u8])]) -> CheckpointError {
    checkpoint::open(folder(files).path()).unwrap_err()
}

const PARAMS: (&str, &[u8]) = ("params.json", pth::PARAMS.as_bytes());

#[test]
fn a_complete_folder_is_recognised() {
    let model = pth::model();
    let meta = folder(&[PARAMS, ("consolidated.00.pth", &model)]);
    let opened = checkpoint::open(meta.path()).unwrap();
    assert_eq!((opened.format(), opened.tokenizer_path()), (Format::Meta, None));
    fs::write(meta.path().join("tokenizer.json"), "").unwrap();
    let opened = checkpoint::open(meta.path()).unwrap();
    assert!(opened.tokenizer_path().unwrap().ends_with("tokenizer.json"));

    let files = [("config.json", CONFIG.as_bytes()), ("model.safetensors", &safetensors(&TENSORS))];
    let opened = checkpoint::open(folder(&files).path()).unwrap();
    assert_eq!((opened.format(), opened.max_seq_len()), (Format::HuggingFace, Some(16)));
}

#[test]
fn folders_without_a_checkpoint_say_what_is_missing() {
    let nowhere = checkpoint::open("/nonexistent/llama").unwrap_err();
    assert!(matches!(nowhere, CheckpointError::Io { .. }) && nowhere.is_not_found(), "{nowhere}");
    let empty = error(&[("pytorch_model.bin", b"")]);
    assert!(matches!(empty, CheckpointError::NoCheckpoint { .. }) && empty.is_not_found());
    assert!(empty.to_string().contains("pytorch_model.bin"), "{empty}");
    assert!(error(&[]).to_string().contains("found nothing"), "{}", error(&[]));
    let many = ["a", "b", "c", "d", "e", "f", "g"].map(|name| (name, b"".as_slice()));
    assert!(error(&many).to_string().contains("a, b, c, d, e and 2 more"), "{}", error(&many));

    let model = pth::model();
    for (files, file) in [
        (vec![PARAMS], "consolidated.00.pth"),
        (vec![("consolidated.00.pth", &*model)], "params.json"),
        (vec![("config.json", CONFIG.as_bytes())], "model.safetensors"),
        (vec![("model.safetensors", b"".as_slice())], "config.json"),
        (vec![("model.safetensors.index.json", b"{}".as_slice())], "config.json"),
    ] {
        let error = error(&files);
        assert!(
            matches!(&error, CheckpointError::MissingFile { file: missing, .. } if missing.ends_with(file)),
            "{error}"
        );
        assert!(error.is_not_found());
    }
    let folder = folder(&[PARAMS]);
    let error = checkpoint::open(folder.path().join("params.json")).unwrap_err();
    assert!(matches!(error, CheckpointError::NotAFolder { .. }), "{error}");
    fs::create_dir(folder.path().join("consolidated.00.pth")).unwrap();
    let error = checkpoint::open(folder.path()).unwrap_err();
    assert!(matches!(error, CheckpointError::Io { .. }), "{error}");
}

#[test]
fn two_checkpoints_in_one_folder_are_an_error() {
    let pth = pth::model();
    let model = safetensors(&TENSORS);
    for files in [
        vec![PARAMS, ("consolidated.00.pth", &*pth), ("model.safetensors", &model)],
        vec![("model.safetensors", &*model), ("model.safetensors.index.json", b"{}")],
    ] {
        let error = error(&[files, vec![("config.json", CONFIG.as_bytes())]].concat());
        assert!(matches!(&error, CheckpointError::Ambiguous { found, .. } if found.len() == 2), "{error}");
    }
}

#[test]
fn a_gap_among_the_shards_is_an_error() {
    let model = pth::model();
    for name in ["consolidated.02.pth", "consolidated.1.pth", "consolidated.xx.pth"] {
        let error = error(&[PARAMS, ("consolidated.00.pth", &model), (name, &model)]);
        assert!(
            matches!(&error, CheckpointError::Shards { found, .. } if found.contains(&name.to_owned())),
            "{error}"
        );
    }
}

/// A `.pth` file above 4 GiB, as those of real models are: the zip directory then has its offsets in 64 bits.
#[test]
#[cfg(all(unix, target_pointer_width = "64"))]
fn storages_beyond_4_gib_are_found() {
    use std::os::unix::fs::FileExt;

    const FAR: u64 = 5 << 30;
    let entries = pth::entries();
    let mut contents = vec![("data.pkl".to_owned(), pth::pickle(&entries))];
    contents.extend(pth::storages(&entries));

    let dir = folder(&[PARAMS]);
    let file = fs::File::create_new(dir.path().join("consolidated.00.pth")).unwrap();
    let mut directory = Vec::new();
    let mut at = 0;
    for (i, (name, content)) in contents.iter().enumerate() {
        let name = format!("archive/{name}");
        let mut local = [b"PK\x03\x04".as_slice(), &[0; 22]].concat();
        local.extend((name.len() as u16).to_le_bytes());
        local.extend([0; 2]);
        local.extend(name.as_bytes());
        local.extend(content);
        file.write_all_at(&local, at).unwrap();

        let far = at > u64::from(u32::MAX);
        directory.extend(b"PK\x01\x02");
        directory.extend([0; 16]);
        directory.extend((content.len() as u32).to_le_bytes());
        directory.extend((content.len() as u32).to_le_bytes());
        directory.extend((name.len() as u16).to_le_bytes());
        directory.extend([if far { 12 } else { 0 }, 0]);
        directory.extend([0; 10]);
        directory.extend(u32::try_from(at).unwrap_or(u32::MAX).to_le_bytes());
        directory.extend(name.as_bytes());
        if far {
            directory.extend([1, 0, 8, 0]);
            directory.extend(at.to_le_bytes());
        }
        // The pickle lies at the start, everything else beyond: the file has a hole in between.
        at = if i == 0 { FAR } else { at + local.len() as u64 };
    }
    let directory_at = at;
    let end64_at = directory_at + directory.len() as u64;
    let mut end = directory.clone();
    end.extend(b"PK\x06\x06");
    end.extend([0; 28]);
    end.extend((contents.len() as u64).to_le_bytes());
    end.extend((directory.len() as u64).to_le_bytes());
    end.extend(directory_at.to_le_bytes());
    end.extend(b"PK\x06\x07\0\0\0\0");
    end.extend(end64_at.to_le_bytes());
    end.extend([0; 4]);
    end.extend(b"PK\x05\x06");
    end.extend([0; 4]);
    end.extend([0xff; 12]);
    end.extend([0; 2]);
    file.write_all_at(&end, directory_at).unwrap();

    let near = checkpoint::from_bytes(PARAMS.1, [pth::model()]).unwrap();
    let far = checkpoint::open(dir.path()).unwrap();
    assert_same(&near, &far);
}

fn assert_same(a: &checkpoint::Checkpoint, b: &checkpoint::Checkpoint) {
    for (name, _) in a.config().tensors() {
        assert_eq!(a.weights().bytes(&name).unwrap()[..], b.weights().bytes(&name).unwrap()[..], "{name}");
    }
}
