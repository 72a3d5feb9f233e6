//! Files with a part cut off or bytes changed at random: each opens or is an error, soon and in little memory.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "fixtures/pth.rs"]
mod pth;

use std::fs;
use std::path::Path;

use llama_core::checkpoint::{self, Checkpoint, CheckpointError};

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
        assert!(
            after - before < 1 << 20,
            "{} KiB of address space were taken",
            after - before
        );
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

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "hidden_size": 8,
    "intermediate_size": 24, "max_position_embeddings": 16, "model_type": "llama", "num_attention_heads": 2,
    "num_hidden_layers": 1, "num_key_value_heads": 1, "rms_norm_eps": 1e-05, "rope_scaling": null,
    "rope_theta": 10000.0, "tie_word_embeddings": true, "vocab_size": 6}"#;

fn safetensors() -> Vec<u8> {
    let shapes: [(&str, &[usize]); 11] = [
        ("model.embed_tokens.weight", &[6, 8]),
        ("model.norm.weight", &[8]),
        ("model.layers.0.self_attn.q_proj.weight", &[8, 8]),
        ("model.layers.0.self_attn.k_proj.weight", &[4, 8]),
        ("model.layers.0.self_attn.v_proj.weight", &[4, 8]),
        ("model.layers.0.self_attn.o_proj.weight", &[8, 8]),
        ("model.layers.0.mlp.gate_proj.weight", &[24, 8]),
        ("model.layers.0.mlp.down_proj.weight", &[8, 24]),
        ("model.layers.0.mlp.up_proj.weight", &[24, 8]),
        ("model.layers.0.input_layernorm.weight", &[8]),
        ("model.layers.0.post_attention_layernorm.weight", &[8]),
    ];
    let mut at = 0;
    let entries: Vec<_> = shapes
        .iter()
        .map(|(name, shape)| {
            let start = at;
            at += shape.iter().product::<usize>() * 2;
            format!(r#""{name}":{{"dtype":"BF16","shape":{shape:?},"data_offsets":[{start},{at}]}}"#)
        })
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + at, 7);
    bytes
}

/// A folder whose files are written anew for each case.
fn exercise_folder(dir: &Path, files: &[(&str, &[u8])]) -> bool {
    for (name, content) in files {
        fs::write(dir.join(name), content).unwrap();
    }
    exercise(checkpoint::open(dir))
}

fn exercise_model(dir: &Path, model: &[u8]) -> bool {
    exercise_folder(
        dir,
        &[("config.json", CONFIG.as_bytes()), ("model.safetensors", model)],
    )
}

#[test]
fn safetensors_cut_off_or_changed_open_or_are_an_error() {
    let dir = tempfile::tempdir().unwrap();
    in_little_memory(|| {
        let model = safetensors();
        assert!(exercise_model(dir.path(), &model));
        for len in (0..model.len()).step_by(7) {
            assert!(!exercise_model(dir.path(), &model[..len]), "{len} bytes");
        }
        let mut random = Random(3);
        let cases = (0..3000).map(|case| {
            let mut bytes = model.clone();
            // The header has 1,000 bytes; what follows is numbers.
            let len = if case % 8 == 0 { 8 } else { 1100 };
            random.mutate(&mut bytes[..len]);
            exercise_model(dir.path(), &bytes)
        });
        cases.filter(|&opened| opened).count()
    });
}

#[test]
fn config_with_changed_bytes_opens_or_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    in_little_memory(|| {
        let model = safetensors();
        let mut random = Random(4);
        let cases = (0..2000).map(|_| {
            let mut config = CONFIG.as_bytes().to_vec();
            random.mutate(&mut config);
            exercise_folder(
                dir.path(),
                &[("config.json", &config), ("model.safetensors", &model)],
            )
        });
        cases.filter(|&opened| opened).count()
    });
}
