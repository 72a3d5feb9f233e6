//! Every call that Meta's reference was asked, asked of us: ids, text and log-probabilities must be the same; on one rank and on several.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

#[path = "golden/generate.rs"]
mod generate;
mod golden;

use std::sync::Arc;

use golden::Golden;
use llama_backend::testing::ThreadRanks;
use llama_core::Device;

fn check_file(file: &str) {
    let Some(golden) = Golden::load(file) else { return };
    let Some(checkpoint) = golden.data("checkpoint") else { return };
    for engine in golden::engines() {
        generate::check(&golden, &checkpoint, engine.name(), |builder| builder.backend(engine));
        let backend = engine.open(Device::Cpu).unwrap();
        if !backend.capabilities().tensor_parallel {
            continue;
        }
        for size in [2, 4] {
            let ranks = Arc::new(ThreadRanks::new(Arc::clone(&backend), size));
            let note = format!("{engine} on {size} ranks");
            generate::check(&golden, &checkpoint, &note, |builder| {
                builder.custom_backend(Arc::<ThreadRanks>::clone(&ranks))
            });
        }
    }
}

#[test]
fn generate_stories260k() {
    check_file("generate_stories260k.json");
}

#[test]
fn generate_stories260k_eos() {
    check_file("generate_stories260k_eos.json");
}
