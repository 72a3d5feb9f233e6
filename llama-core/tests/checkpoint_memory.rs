//! A model whose shards are joined is in memory once. Alone in its file: it measures the process.
#![allow(clippy::unwrap_used, clippy::print_stdout)]
#![cfg(target_os = "linux")]

#[path = "fixtures/pth.rs"]
mod pth;

use std::fs;

use llama_core::checkpoint;

const VOCAB: usize = 2 << 20;

fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn a_joined_model_is_in_memory_once() {
    let mut half = pth::entries();
    for entry in &mut half {
        let dim = match entry.name.rsplit('.').nth(1).unwrap() {
            "wo" | "w2" | "tok_embeddings" => 1,
            "norm" | "attention_norm" | "ffn_norm" => continue,
            _ => 0,
        };
        if entry.shape == [6, 8] {
            entry.shape[0] = VOCAB;
        }
        entry.shape[dim] /= 2;
        entry.strides = vec![entry.shape[1], 1];
        entry.n = entry.shape.iter().product();
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("params.json"), pth::PARAMS).unwrap();
    let mut content = vec![("data.pkl".to_owned(), pth::pickle(&half))];
    content.extend(half.iter().map(|entry| (format!("data/{}", entry.key), vec![1; entry.n * 4])));
    let shard = pth::archive(&content, zip::CompressionMethod::Stored);
    for name in ["consolidated.00.pth", "consolidated.01.pth"] {
        fs::write(dir.path().join(name), &shard).unwrap();
    }
    let model_size = 2 * shard.len() as u64;
    drop((shard, content));

    let before = resident();
    let opened = checkpoint::open(dir.path()).unwrap();
    let mapped = resident().saturating_sub(before);
    let weights = opened.weights();
    let tensors: Vec<_> = opened.config().tensors().map(|(name, _)| weights.bytes(&name).unwrap()).collect();
    let held = resident().saturating_sub(before);
    println!("{model_size} bytes of shards; {mapped} resident when opened, {held} when joined");
    assert!(tensors.iter().map(|bytes| bytes.len() as u64).sum::<u64>() > model_size * 9 / 10);
    // The system maps some pages around each that is read.
    assert!(mapped < model_size / 4);
    assert!(held < model_size * 6 / 5 + (8 << 20));
}
