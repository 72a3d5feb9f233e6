//! Files that are damaged, that lie, or that want to run something: each is an error that says what is wrong.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "fixtures/pth.rs"]
mod pth;

use llama_backend::WeightError;
use llama_core::checkpoint::{self, ArchiveError, Checkpoint, CheckpointError, PickleError};
use pth::{Entry, PARAMS};
use zip::CompressionMethod;

fn open(params: &str, pth: Vec<u8>) -> Result<Checkpoint, CheckpointError> {
    checkpoint::from_bytes(params.as_bytes(), [pth])
}

/// The error of the tiny model with this pickle.
fn with_pickle(pickle: Vec<u8>) -> CheckpointError {
    open(PARAMS, pth::pth(pickle, &pth::entries())).unwrap_err()
}

/// The error of the tiny model whose tensor `name` is changed.
fn with_entry(name: &str, change: impl FnOnce(&mut Entry)) -> CheckpointError {
    let whole = pth::entries();
    let mut changed = whole.clone();
    change(changed.iter_mut().find(|entry| entry.name == name).unwrap());
    open(PARAMS, pth::pth(pth::pickle(&changed), &whole)).unwrap_err()
}

#[test]
fn the_tiny_model_opens() {
    for bytes in [pth::model(), pth::legacy()] {
        let checkpoint = open(PARAMS, bytes).unwrap();
        assert_eq!((checkpoint.config().dim, checkpoint.config().vocab_size), (8, 6));
    }
}

/// `pickle` with every `from` replaced.
fn replace(pickle: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut replaced = Vec::new();
    let mut rest = pickle;
    while let Some(at) = rest.windows(from.len()).position(|window| window == from) {
        replaced.extend([&rest[..at], to].concat());
        rest = &rest[at + from.len()..];
    }
    replaced.extend(rest);
    replaced
}

#[test]
fn later_protocols_and_attributes_are_read() {
    let entries = pth::entries();
    let pickle = pth::pickle(&entries);
    // Protocol 4: a frame, names from the stack, each remembered.
    let mut modern = replace(&pickle, b"\x80\x02", b"\x80\x04\x95\0\0\0\0\0\0\0\0");
    for name in ["torch._utils._rebuild_tensor_v2", "torch.FloatStorage", "collections.OrderedDict"] {
        let short = |text: &str| [&[0x8c, text.len() as u8], text.as_bytes(), &[0x94]].concat();
        let (module, function) = name.rsplit_once('.').unwrap();
        let call = [short(module), short(function), vec![0x93, 0x94]].concat();
        modern = replace(&modern, &pth::global(name), &call);
    }
    assert_ne!(modern, pickle);
    open(PARAMS, pth::pth(modern, &entries)).unwrap();

    // What `state_dict()` gives: an OrderedDict with the attribute _metadata.
    let ordered = replace(&pickle, b"\x80\x02}(", b"\x80\x02ccollections\nOrderedDict\n)R(");
    let metadata = [b"u}".to_vec(), pth::string("_metadata"), b"}sb.".to_vec()].concat();
    let ordered = replace(&ordered, b"u.", &metadata);
    assert_ne!(ordered, pickle);
    open(PARAMS, pth::pth(ordered, &entries)).unwrap();
}

#[test]
fn nothing_in_a_pickle_runs() {
    for name in
        ["os.system", "builtins.eval", "torch.load", "torch._utils._rebuild_qtensor", "collections.Counter"]
    {
        let mut call = b"\x80\x02".to_vec();
        call.extend(pth::global(name));
        call.extend(pth::string("echo hacked"));
        call.extend(b"\x85R.");
        let error = with_pickle(call);
        assert!(
            matches!(&error, CheckpointError::Pickle { source: PickleError::Global { name: found }, .. } if found == name),
            "{error}"
        );
        assert!(error.to_string().contains(name) && !error.is_malformed());
        // The same by STACK_GLOBAL, as protocol 4 writes it.
        let (module, function) = name.rsplit_once('.').unwrap();
        let pickle = [b"\x80\x04".to_vec(), pth::string(module), pth::string(function), b"\x93.".to_vec()];
        let error = with_pickle(pickle.concat());
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn pickles_that_exhaust_or_loop_are_errors() {
    let deep =
        |open: &[u8], close: &[u8]| [open.repeat(100_000), close.repeat(100_000), b".".to_vec()].concat();
    let lists = |n: usize| [b"]".repeat(n), b"a".repeat(n - 1), b".".to_vec()].concat();
    let hostile: Vec<(&str, Vec<u8>)> = vec![
        ("nested tuples", deep(b")", b"\x85")),
        ("nested lists", lists(100_000)),
        ("marks", b"(".repeat(900_000)),
        ("endless", b")0".repeat(2_000_000)),
        ("a list in itself", b"\x80\x02]q\x00h\x00a.".to_vec()),
        ("a dictionary in itself", b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.".to_vec()),
        ("a long of 4 GB", b"\x80\x02\x8b\xff\xff\xff\x7f".to_vec()),
        ("a long of 255 bytes", [b"\x8a\xff".to_vec(), vec![1; 255]].concat()),
        ("a string of 2^63 bytes", b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f".to_vec()),
        ("a string of 4 GB", b"X\xff\xff\xff\xff".to_vec()),
        ("a memo at 2^32 - 1", b"Nr\xff\xff\xff\xff.".to_vec()),
        ("no memo", b"h\x07.".to_vec()),
        ("an empty stack", b"0.".to_vec()),
        ("a mark that was never set", b"t.".to_vec()),
        ("popping a mark", b"N(0.".to_vec()),
        ("a key without a value", b"}(Nu.".to_vec()),
        ("appending to a dictionary", b"}Na.".to_vec()),
        ("no STOP", b"N".to_vec()),
        ("nothing", Vec::new()),
        ("a number", b"K\x01.".to_vec()),
        ("an unknown instruction", b"\xff.".to_vec()),
        ("a name without an end", [b"c".to_vec(), vec![b'a'; 5000]].concat()),
        ("calling a list", b"])R.".to_vec()),
        ("a reference to nothing", b"NQ.".to_vec()),
    ];
    for (what, pickle) in hostile {
        let error = with_pickle(pickle);
        assert!(matches!(error, CheckpointError::Pickle { .. }), "{what}: {error}");
    }
}

#[test]
fn many_tensors_of_one_huge_shape_take_no_memory() {
    // One tuple of 100,000 numbers, and 10,000 tensors whose shape it is: copying it each time would take 8 GB.
    let storage = &pth::entries()[0];
    let mut pickle = b"\x80\x02(".to_vec();
    pickle.extend(b"K\x01".repeat(100_000));
    pickle.extend(b"tq\x00");
    let [global, reduce] = [pth::global("torch._utils._rebuild_tensor_v2"), b"tR".to_vec()];
    let id = [
        b"((".to_vec(),
        pth::string("storage"),
        pth::global("torch.FloatStorage"),
        pth::string(&storage.key),
        pth::string("cpu"),
        b"K\x30tQ".to_vec(),
    ];
    for _ in 0..10_000 {
        pickle.extend(&global);
        pickle.extend(id.concat());
        pickle.extend(b"K\x00h\x00h\x00NN");
        pickle.extend(&reduce);
    }
    assert!(matches!(with_pickle(pickle), CheckpointError::Pickle { .. }));
}

#[test]
fn tensors_outside_their_storage_are_errors() {
    let name = "layers.0.attention.wq.weight";
    for (what, error) in [
        ("an offset", with_entry(name, |e| e.offset = 1)),
        ("a huge offset", with_entry(name, |e| e.offset = usize::MAX)),
        ("a stride", with_entry(name, |e| e.strides = vec![9, 1])),
        ("a huge stride", with_entry(name, |e| e.strides = vec![usize::MAX; 2])),
        ("too few strides", with_entry(name, |e| e.strides = vec![8])),
        ("a short storage", with_entry(name, |e| e.n = 65)),
        ("an absurd storage", with_entry(name, |e| e.n = usize::MAX / 2)),
    ] {
        assert!(
            matches!(&error, CheckpointError::Layout { tensor, .. } if tensor == name),
            "{what}: {error}"
        );
        assert!(error.is_malformed());
    }
    // A few bytes that look like 2^48 elements by strides of 0, with params.json to match.
    let params = PARAMS.replace(r#""vocab_size": -1"#, r#""vocab_size": 16777216"#);
    let mut entries = pth::entries();
    entries[0].shape = vec![16_777_216, 8];
    entries[0].strides = vec![0, 0];
    let error = open(&params, pth::pth(pth::pickle(&entries), &pth::entries())).unwrap_err();
    assert!(matches!(error, CheckpointError::Layout { .. }), "{error}");
}

#[test]
fn wrong_tensors_are_named() {
    let name = "layers.0.feed_forward.w2.weight";
    let error = with_entry(name, |e| e.name = "layers.0.feed_forward.w4.weight".to_owned());
    assert!(
        matches!(&error, CheckpointError::Weights(WeightError::Missing { tensor, .. }) if tensor == name),
        "{error}"
    );
    let error = with_entry(name, |e| {
        e.shape = vec![24, 8];
        e.strides = vec![8, 1];
    });
    let CheckpointError::Weights(WeightError::Shape { tensor, found, expected, .. }) = &error else {
        panic!("{error}")
    };
    assert_eq!((&**tensor, &**found, &**expected), (name, &[24, 8][..], &[8, 24][..]));
    assert!(error.to_string().contains("consolidated.00.pth"));
    // An integer type of the same size.
    let error = with_entry(name, |e| e.class = "IntStorage");
    assert!(
        matches!(&error, CheckpointError::Weights(WeightError::DType { found, .. }) if found == "IntStorage"),
        "{error}"
    );
    // rope.freqs is the one tensor that a model does not need and may have.
    for (extra, accepted) in [("rope.freqs", true), ("layers.0.attention.wq.bias", false)] {
        let mut entries = pth::entries();
        let mut entry = entries[1].clone();
        entry.name = extra.to_owned();
        entries.push(entry);
        let opened = open(PARAMS, pth::pth(pth::pickle(&entries), &pth::entries()));
        match opened {
            Ok(_) => assert!(accepted),
            Err(CheckpointError::ExtraTensor { tensor, .. }) => {
                assert!(!accepted && tensor == extra);
            }
            Err(error) => panic!("{error}"),
        }
    }
    let twice = [pth::entries(), pth::entries()].concat();
    let error = open(PARAMS, pth::pth(pth::pickle(&twice), &pth::entries())).unwrap_err();
    assert!(matches!(error, CheckpointError::Layout { .. }), "{error}");
}

fn archive_error(pth: Vec<u8>) -> ArchiveError {
    match open(PARAMS, pth).unwrap_err() {
        CheckpointError::Archive { source, .. } => source,
        other => panic!("{other}"),
    }
}

/// Where the directory's record of an entry, or the end of the archive, starts.
fn find(file: &[u8], magic: &[u8; 4]) -> usize {
    file.windows(4).position(|window| window == magic).unwrap()
}

#[test]
fn archives_that_lie_are_errors() {
    let put = |offset: usize, bytes: &[u8]| {
        let mut file = pth::model();
        let at = find(&file, b"PK\x01\x02") + offset;
        file[at..at + bytes.len()].copy_from_slice(bytes);
        archive_error(file)
    };
    let error = put(10, &[8, 0]);
    assert!(
        matches!(&error, ArchiveError::NotStored { entry, .. } if entry == "archive/data.pkl"),
        "{error}"
    );
    assert!(matches!(put(8, &[1, 0]), ArchiveError::NotStored { .. }));
    for (what, error) in [
        ("size", put(24, &[0xfe, 0xff, 0xff, 0xff])),
        ("both sizes", put(20, &[0xfe, 0xff, 0xff, 0x7f, 0xfe, 0xff, 0xff, 0x7f])),
        ("zip64 without a field", put(24, &[0xff; 4])),
        ("offset", put(42, &[0xfe, 0xff, 0xff, 0xff])),
        ("offset of another entry", put(42, &[1, 0, 0, 0])),
        ("name length", put(28, &[0xff, 0xff])),
        ("comment length", put(32, &[0xff, 0xff])),
    ] {
        assert!(matches!(error, ArchiveError::Damaged { .. }), "{what}: {error}");
    }
    let end = |offset: usize, bytes: &[u8]| {
        let mut file = pth::model();
        let at = find(&file, b"PK\x05\x06") + offset;
        file[at..at + bytes.len()].copy_from_slice(bytes);
        archive_error(file)
    };
    assert!(matches!(end(10, &[0xff, 0xff]), ArchiveError::Damaged { .. }));
    assert!(matches!(end(12, &[0xff; 4]), ArchiveError::Damaged { .. }));
    assert!(matches!(end(16, &[0xff; 4]), ArchiveError::Damaged { .. }));
    assert!(matches!(end(20, &[1, 0]), ArchiveError::Truncated { .. }));
}

#[test]
fn overlapping_and_repeated_entries_are_errors() {
    let entries = vec![
        ("data.pkl".to_owned(), pth::pickle(&pth::entries())),
        ("data/a".to_owned(), vec![0; 64]),
        ("data/b".to_owned(), vec![0; 64]),
    ];
    let file = pth::archive(&entries, CompressionMethod::Stored);
    let records: Vec<_> = (0..file.len() - 4).filter(|&at| file[at..].starts_with(b"PK\x01\x02")).collect();
    let [_, a, b] = *records else { panic!() };

    // The first storage says that it is longer than the room before the second.
    let mut overlapping = file.clone();
    for at in [a + 20, a + 24] {
        overlapping[at] = 128;
    }
    let error = archive_error(overlapping);
    assert!(error.to_string().contains("overlap"), "{error}");

    // Its record is that of the second: the same name, the same place.
    let mut repeated = file.clone();
    let record = file[b..b + 46 + "archive/data/b".len()].to_vec();
    repeated[a..a + record.len()].copy_from_slice(&record);
    let error = archive_error(repeated);
    assert!(error.to_string().contains("two entries"), "{error}");

    let error = archive_error(pth::archive(&entries[1..], CompressionMethod::Stored));
    assert!(matches!(error, ArchiveError::NoEntry { .. }), "{error}");
}

#[test]
fn other_files_are_recognised_as_such() {
    for content in [&b""[..], b"PK", b"version https://git-lfs.github.com/spec/v1", &[0; 4096], b"\x80\x02."]
    {
        let error = archive_error(content.to_vec());
        assert!(matches!(error, ArchiveError::NotPyTorch { .. }), "{error}");
    }
    let mut big = vec![("byteorder".to_owned(), b"big".to_vec())];
    big.push(("data.pkl".to_owned(), pth::pickle(&pth::entries())));
    let error = archive_error(pth::archive(&big, CompressionMethod::Stored));
    assert!(matches!(&error, ArchiveError::ByteOrder { found } if found == "big"), "{error}");
}
