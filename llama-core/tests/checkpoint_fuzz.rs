//! Files with a part cut off or bytes changed at random: each opens or is an error, soon and in little memory.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "fixtures/gguf.rs"]
mod gguf;
#[path = "fixtures/hf.rs"]
mod hf;
#[path = "fixtures/pth.rs"]
mod pth;

use std::fs;
use std::path::Path;

use gguf::Gguf;
use hf::{CONFIG, TENSORS, safetensors};
use llama_core::checkpoint::{self, Checkpoint, CheckpointError};
use llama_core::tokenizer::Tokenizer;

/// SplitMix64: the cases are the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Changes one to eight bytes, most of them to values at which lengths and signs turn.
    fn mutate(&mut self, bytes: &mut [u8]) {
        for _ in 0..=self.below(8) {
            let at = self.below(bytes.len());
            bytes[at] = match self.below(4) {
                0 => self.next() as u8,
                1 => [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                2 => bytes[at] ^ (1 << self.below(8)),
                _ => bytes[self.below(bytes.len())],
            };
        }
    }
}

/// What can be read is read: a file that opens must not fail later either.
fn exercise(opened: Result<Checkpoint, CheckpointError>) -> bool {
    match opened {
        Ok(checkpoint) => {
            let weights = checkpoint.weights();
            for (name, _) in checkpoint.config().tensors() {
                let info = weights.info(&name).unwrap();
                assert_eq!(weights.bytes(&name).map(|bytes| bytes.len()).ok(), info.n_bytes());
            }
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

/// The most address space that the process has had, in KiB, where the system says.
fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmPeak"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Runs the cases and checks that none reserved an absurd amount of memory, even if it never touched it.
fn in_little_memory(cases: impl FnOnce() -> usize) {
    let before = peak_memory();
    let opened = cases();
    println!("{opened} of the damaged files still open");
    if let (Some(before), Some(after)) = (before, peak_memory()) {
        // Threads of other tests take 64 MiB of address space each for their heaps.
        assert!(after - before < 1 << 20, "{} KiB of address space were taken", after - before);
    }
}

fn open(pth: Vec<u8>) -> Result<Checkpoint, CheckpointError> {
    checkpoint::from_bytes(pth::PARAMS.as_bytes(), [pth])
}

#[test]
fn pth_cut_off_anywhere_is_an_error() {
    in_little_memory(|| {
        for whole in [pth::model(), pth::legacy()] {
            assert!(exercise(open(whole.clone())));
            for len in 0..whole.len() {
                assert!(!exercise(open(whole[..len].to_vec())), "{len} bytes");
            }
        }
        0
    });
}

#[test]
fn pth_with_changed_bytes_opens_or_is_an_error() {
    in_little_memory(|| {
        let mut random = Random(1);
        let mut opened = 0;
        for whole in [pth::model(), pth::legacy()] {
            // Half of the cases in the last part of the file, where the zip directory is, or the first, where the pickle is.
            for case in 0..6000 {
                let mut bytes = whole.clone();
                let len = bytes.len();
                match case % 4 {
                    0 => random.mutate(&mut bytes[len - 1000..]),
                    1 => random.mutate(&mut bytes[..2500]),
                    _ => random.mutate(&mut bytes),
                }
                opened += usize::from(exercise(open(bytes)));
            }
        }
        opened
    });
}

#[test]
fn params_with_changed_bytes_open_or_are_an_error() {
    in_little_memory(|| {
        let mut random = Random(2);
        let model = pth::model();
        let cases = (0..4000).map(|_| {
            let mut params = pth::PARAMS.as_bytes().to_vec();
            random.mutate(&mut params);
            exercise(checkpoint::from_bytes(&params, [model.clone()]))
        });
        cases.filter(|&opened| opened).count()
    });
}

/// The model in `dir` once this file of it was written anew.
fn exercise_file(dir: &Path, name: &str, content: &[u8]) -> bool {
    // A new file: some file systems write one to the disk at once when it is overwritten.
    let file = dir.join(name);
    fs::remove_file(&file).ok();
    fs::write(&file, content).unwrap();
    exercise(checkpoint::open(dir))
}

#[test]
fn safetensors_cut_off_or_changed_open_or_are_an_error() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), CONFIG).unwrap();
    in_little_memory(|| {
        let exercise = |model: &[u8]| exercise_file(dir.path(), "model.safetensors", model);
        let model = safetensors(&TENSORS);
        assert!(exercise(&model));
        for len in (0..model.len()).step_by(7) {
            assert!(!exercise(&model[..len]), "{len} bytes");
        }
        let mut random = Random(3);
        let cases = (0..2000).map(|case| {
            let mut bytes = model.clone();
            // The header has 1,000 bytes; what follows is numbers.
            let len = if case % 8 == 0 { 8 } else { 1100 };
            random.mutate(&mut bytes[..len]);
            exercise(&bytes)
        });
        cases.filter(|&opened| opened).count()
    });
}

#[test]
fn config_with_changed_bytes_opens_or_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("model.safetensors"), safetensors(&TENSORS)).unwrap();
    in_little_memory(|| {
        let mut random = Random(4);
        let cases = (0..2000).map(|_| {
            let mut config = CONFIG.as_bytes().to_vec();
            random.mutate(&mut config);
            exercise_file(dir.path(), "config.json", &config)
        });
        cases.filter(|&opened| opened).count()
    });
}

/// Plain and quantised, with a tokenizer.
fn ggufs() -> [Gguf; 2] {
    let tokenizer = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizer.model");
    let tokenizer = Tokenizer::open(tokenizer).unwrap();
    [Gguf::tiny(), Gguf::in_blocks()].map(|mut gguf| {
        if gguf.tensors[0].dimensions[0] == 32 {
            gguf.set_blocks("blk.0.ffn_up.weight", 8, 32, 34);
        }
        gguf.set_tokenizer(&tokenizer);
        gguf
    })
}

#[test]
fn gguf_cut_off_anywhere_is_an_error() {
    in_little_memory(|| {
        for gguf in ggufs() {
            let (whole, header) = (gguf.to_bytes(), gguf.header().len());
            assert!(exercise(checkpoint::from_gguf_bytes(whole.clone())));
            // Most of the file is pieces of the tokenizer, one like the other.
            for len in (0..3000).chain((3000..header - 700).step_by(11)).chain(header - 700..whole.len()) {
                let cut = whole[..len].to_vec();
                if len < header {
                    assert!(Tokenizer::from_bytes(&cut).is_err(), "{len} bytes");
                }
                assert!(!exercise(checkpoint::from_gguf_bytes(cut)), "{len} bytes");
            }
        }
        0
    });
}

#[test]
fn gguf_with_changed_bytes_opens_or_is_an_error() {
    in_little_memory(|| {
        let mut random = Random(5);
        let mut opened = 0;
        for gguf in ggufs() {
            let (whole, header) = (gguf.to_bytes(), gguf.header().len());
            // The tokenizer is most of the header: the model's keys come before it, its tensors after it.
            let keys = 2000.min(header);
            for case in 0..4000 {
                let mut bytes = whole.clone();
                match case % 4 {
                    0 => random.mutate(&mut bytes[header - 700..header]),
                    1 => random.mutate(&mut bytes[..64]),
                    2 => random.mutate(&mut bytes[..keys]),
                    _ => random.mutate(&mut bytes[..header]),
                }
                // To derive merges takes longer than all the rest: a quarter of the cases will do.
                if case % 4 == 3
                    && let Err(error) = Tokenizer::from_bytes(&bytes)
                {
                    assert!(!error.to_string().is_empty());
                }
                opened += usize::from(exercise(checkpoint::from_gguf_bytes(bytes)));
            }
        }
        opened
    });
}
