//! Models on ranks that are processes: the golden calls under `mpirun`, and jobs that go wrong, which end.
//!
//! Without an argument this starts itself under `mpirun`, once for each job below; with one it is a rank of that job.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod fixtures {
    pub(crate) mod gguf;
    pub(crate) mod random_gguf;
}
#[path = "golden/generate.rs"]
mod generate;
mod golden;
#[path = "../../llama-parallel-mpi/tests/jobs/mod.rs"]
mod jobs;

use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use golden::Golden;
use jobs::Job;
use llama_backend::testing::{RandomWeights, prefill_and_decode, process_status, together_and_alone};
use llama_backend::{Communicator, DType, Device, LoadParams, ModelSource, Ranks};
use llama_core::tokenizer::Tokenizer;
use llama_core::{
    BackendKind, ChatOptions, Dialog, Llama, LlamaBuilder, ModelConfig, MpiCommunicator, checkpoint,
};

fn main() -> ExitCode {
    jobs::run(&[
        Job { name: "golden", sizes: &[2, 4], rank: golden_calls, fails: None },
        Job { name: "streams", sizes: &[2], rank: streams, fails: None },
        Job { name: "rows", sizes: &[4], rank: rows, fails: None },
        Job { name: "memory", sizes: &[2, 4], rank: memory, fails: None },
        Job { name: "misled", sizes: &[2], rank: misled, fails: None },
        Job { name: "killed", sizes: &[2, 4], rank: killed, fails: Some("answering") },
        Job { name: "missing", sizes: &[2], rank: missing, fails: Some("rank 1: ") },
        Job {
            name: "leaves",
            sizes: &[2],
            rank: leaves,
            fails: Some("rank 0 of 2 ends the job: it left before the job was done"),
        },
    ])
}

/// Every golden call, on rank 0; the others follow each model.
fn golden_calls(mpi: Arc<MpiCommunicator>) -> ExitCode {
    for file in ["generate_stories260k.json", "generate_stories260k_eos.json"] {
        let Some(golden) = Golden::load(file) else { continue };
        let Some(checkpoint) = golden.data("checkpoint") else { continue };
        let on_ranks =
            |builder: LlamaBuilder| builder.communicator(Arc::<MpiCommunicator>::clone(&mpi)).threads(1);
        if mpi.rank() == 0 {
            let note = format!("candle on {} processes", mpi.size());
            generate::check(&golden, &checkpoint, &note, on_ranks);
        } else {
            let number = |case: &serde_json::Value, field| case[field].as_u64().unwrap() as usize;
            let limits = |case| (number(case, "max_seq_len"), number(case, "max_batch_size"));
            let mut limits: Vec<_> = golden.json["cases"].as_array().unwrap().iter().map(limits).collect();
            limits.dedup(); // as models are built
            for limits in limits {
                on_ranks(generate::builder(&checkpoint, limits)).follow().unwrap();
            }
        }
    }
    mpi.finish().unwrap();
    ExitCode::SUCCESS
}

/// A model of random weights, large enough for its answers to last.
fn random(mpi: &Arc<MpiCommunicator>) -> LlamaBuilder {
    Llama::builder()
        .weights(Arc::new(RandomWeights::new(random_config(), DType::F16, 1)))
        .tokenizer_from(tokenizer())
        .threads(1)
        .max_seq_len(4096)
        .communicator(Arc::<MpiCommunicator>::clone(mpi))
}

fn random_config() -> ModelConfig {
    ModelConfig {
        dim: 256,
        n_layers: 8,
        n_heads: 8,
        n_kv_heads: 4,
        head_dim: 32,
        ffn_dim: 1024,
        vocab_size: 1024,
        norm_eps: 1e-5,
        rope_theta: 10000.0,
    }
}

/// One of 1024 tokens.
fn tokenizer() -> Tokenizer {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-chat/tokenizer.model");
    Tokenizer::open(model).unwrap()
}

/// Streams, cancelled and not, sessions and threads of callers: nothing of them knows of ranks.
fn streams(mpi: Arc<MpiCommunicator>) -> ExitCode {
    let builder = random(&mpi).max_seq_len(200).max_batch_size(4);
    if mpi.rank() > 0 {
        builder.follow().unwrap();
        mpi.finish().unwrap();
        return ExitCode::SUCCESS;
    }
    let llama = builder.build().unwrap();
    let options = ChatOptions { max_gen_len: Some(20), ..Default::default() };
    let dialogs: Vec<Dialog> = (0..6).map(|i| Dialog::new(format!("{i} and {i}"))).collect();
    let together = llama.chat_completion(&dialogs, &options).unwrap();
    std::thread::scope(|scope| {
        for (dialog, expected) in dialogs.iter().zip(&together) {
            let (llama, options) = (llama.clone(), &options);
            scope.spawn(move || {
                drop(llama.chat_stream(dialog, options).unwrap()); // cancelled
                let answer = llama.chat_completion(std::slice::from_ref(dialog), options).unwrap();
                assert_eq!(answer[0].generation, expected.generation);
            });
        }
    });
    let mut session = llama.session(None);
    session.ask("hello").unwrap();
    // A second model would meet the first one's steps.
    let second = random(&mpi).build().unwrap_err().to_string();
    assert!(second.contains("have a model already"), "{second}");
    drop((session, llama));
    mpi.finish().unwrap();
    ExitCode::SUCCESS
}

/// A row's logits are the same to the bit alone and in a batch of 8, whose sums are of more numbers and take another way.
fn rows(mpi: Arc<MpiCommunicator>) -> ExitCode {
    let config = ModelConfig {
        dim: 512,
        n_layers: 2,
        n_heads: 8,
        n_kv_heads: 4,
        head_dim: 64,
        ffn_dim: 5 * 256,
        vocab_size: 1000,
        norm_eps: 1e-5,
        rope_theta: 10000.0,
    };
    for dtype in [DType::F16, DType::Q4_K] {
        let backend = BackendKind::Candle.open(Device::Cpu).unwrap();
        let source = ModelSource::Weights(Arc::new(RandomWeights::new(config.clone(), dtype, 3)));
        let mut params = LoadParams::new(8, 8);
        params.threads = Some(1);
        let ranks = Ranks::claim(Arc::<MpiCommunicator>::clone(&mpi)).unwrap();
        if mpi.rank() > 0 {
            ranks.follow(&*backend, source, params).unwrap();
            continue;
        }
        let mut model = ranks.lead(&*backend, source, params).unwrap();
        let [together, alone] = together_and_alone(&mut *model, 8).unwrap();
        assert_eq!((together.len(), alone.len()), (8 * 1000, 8 * 1000));
        assert!(together.iter().zip(&alone).all(|(a, b)| a.to_bits() == b.to_bits()), "{dtype}");
    }
    mpi.finish().unwrap();
    ExitCode::SUCCESS
}

/// A rank takes its part of a checkpoint's memory, and no more, when it is loaded from a file and has used every weight.
fn memory(mpi: Arc<MpiCommunicator>) -> ExitCode {
    let config = ModelConfig {
        dim: 1024,
        n_layers: 2,
        n_heads: 8,
        n_kv_heads: 8,
        head_dim: 128,
        ffn_dim: 4096,
        vocab_size: 1000,
        norm_eps: 1e-5,
        rope_theta: 10000.0,
    };
    // Beside the executable, which is where all ranks are.
    let folder = std::env::current_exe().unwrap().with_extension(format!("memory-{}", mpi.size()));
    if mpi.rank() == 0 {
        std::fs::create_dir_all(&folder).unwrap();
        fixtures::random_gguf::write(&folder, &RandomWeights::new(config.clone(), DType::F16, 5));
    }
    mpi.barrier().unwrap();
    let checkpoint = checkpoint::open(&folder).unwrap();
    let backend = BackendKind::Candle.open(Device::Cpu).unwrap();
    let ranks = Ranks::claim(Arc::<MpiCommunicator>::clone(&mpi)).unwrap();
    let mut params = LoadParams::new(256, 1);
    params.threads = Some(1);
    if mpi.rank() > 0 {
        ranks.follow(&*backend, checkpoint.source(), params).unwrap();
        mpi.finish().unwrap();
        return ExitCode::SUCCESS;
    }
    let own = || process_status("RssAnon").unwrap_or(0);
    let before = own();
    let mut model = ranks.lead(&*backend, checkpoint.source(), params.clone()).unwrap();
    prefill_and_decode(&mut *model).unwrap();
    let took = own().saturating_sub(before);
    let bytes = |(_, shape): (String, Vec<usize>)| 2 * shape.iter().product::<usize>() as u64;
    let matrices = config.tensors().filter(|(name, shape)| shape.len() > 1 && !name.starts_with("tok"));
    // The embeddings stay in the file's memory map; what a step computes with takes some megabytes.
    let part = matrices.map(bytes).sum::<u64>() / mpi.size() as u64;
    println!("rank 0 of {} took {took} bytes of its own for {part} bytes of weights", mpi.size());
    if before > 0 {
        assert!((part..part * 11 / 10 + (16 << 20)).contains(&took), "{took} bytes for {part}");
    }
    drop(model);
    mpi.finish().unwrap();
    let _ = std::fs::remove_dir_all(folder);
    ExitCode::SUCCESS
}

/// Ranks that were given different weights, or call what is another's, are told so, and can go on to another model.
fn misled(mpi: Arc<MpiCommunicator>) -> ExitCode {
    let is_first = mpi.rank() == 0;
    let dtype = if is_first { DType::F16 } else { DType::BF16 };
    let weights = RandomWeights::new(random_config(), dtype, 1);
    let builder = random(&mpi).weights(Arc::new(weights));
    let error = if is_first { builder.build().unwrap_err() } else { builder.follow().unwrap_err() };
    assert!(error.to_string().contains("the weights' types and shapes: bf16"), "{error}");
    let error = random(&mpi).build().unwrap_err().to_string(); // on both
    assert!(error.contains("rank 1 of 2 does not `build`"), "{error}");
    if is_first {
        drop(random(&mpi).build().unwrap());
    } else {
        random(&mpi).follow().unwrap();
    }
    mpi.finish().unwrap();
    ExitCode::SUCCESS
}

/// The last rank is killed while rank 0 is in the middle of an answer.
fn killed(mpi: Arc<MpiCommunicator>) -> ExitCode {
    let mut processes = vec![0.0; mpi.size()];
    // Below 2^24, which f32 has exactly.
    mpi.all_gather(&[std::process::id() as f32], &vec![1; mpi.size()], &mut processes).unwrap();
    if mpi.rank() > 0 {
        random(&mpi).follow().unwrap();
        return ExitCode::SUCCESS;
    }
    let llama = random(&mpi).build().unwrap();
    let last = processes[mpi.size() - 1] as u32;
    loop {
        let options = ChatOptions { max_gen_len: Some(4000), ..Default::default() };
        for _ in llama.chat_stream(&Dialog::new("hello"), &options).unwrap() {
            println!("answering");
            let _ = Command::new("kill").args(["-9", &last.to_string()]).status();
        }
    }
}

/// A host without the checkpoint: every rank has the error, and rank 0 tells it.
fn missing(mpi: Arc<MpiCommunicator>) -> ExitCode {
    let builder = random(&mpi);
    if mpi.rank() > 0 {
        let error = builder.checkpoint("/no/such/folder").follow().unwrap_err().to_string();
        assert!(error.contains("no/such/folder"), "{error}");
        mpi.finish().unwrap();
        return ExitCode::FAILURE;
    }
    let error = builder.build().unwrap_err();
    println!("{error}");
    assert!(error.to_string().contains("no/such/folder"), "{error}");
    mpi.finish().unwrap();
    ExitCode::FAILURE
}

/// Rank 0 ends its program while the others wait to be told what to load.
fn leaves(mpi: Arc<MpiCommunicator>) -> ExitCode {
    if mpi.rank() > 0 {
        random(&mpi).follow().unwrap();
        mpi.finish().unwrap();
    }
    ExitCode::SUCCESS
}
