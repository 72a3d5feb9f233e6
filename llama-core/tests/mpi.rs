//! Models on ranks that are processes: the golden calls under `mpirun`, and jobs that go wrong, which end.
//!
//! Without an argument this starts itself under `mpirun`, once for each job below; with one it is a rank of that job.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

#[path = "golden/generate.rs"]
mod generate;
mod golden;

use std::path::Path;
use std::process::{Command, ExitCode, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use golden::Golden;
use llama_backend::testing::RandomWeights;
use llama_backend::{Communicator, DType};
use llama_core::tokenizer::Tokenizer;
use llama_core::{
    ChatOptions, Dialog, GenerationOptions, Llama, LlamaBuilder, ModelConfig, MpiCommunicator, TokenId,
};

/// A job that goes wrong ends within this.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    // The test runner's own arguments are none of the jobs.
    match args.next().as_deref().and_then(|name| JOBS.iter().find(|job| job.name == name)) {
        Some(job) => (job.rank)(MpiCommunicator::init().unwrap()),
        None => {
            for job in JOBS {
                for &size in job.sizes {
                    let started = Instant::now();
                    let output = mpirun(job.name, size);
                    println!("{} on {size} ranks: {:.1} s", job.name, started.elapsed().as_secs_f64());
                    (job.check)(&output, started.elapsed());
                }
            }
            ExitCode::SUCCESS
        }
    }
}

struct Job {
    name: &'static str,
    sizes: &'static [usize],
    /// What a rank does.
    rank: fn(Arc<MpiCommunicator>) -> ExitCode,
    /// What comes of it.
    check: fn(&Output, Duration),
}

const JOBS: &[Job] = &[
    Job { name: "golden", sizes: &[2, 4], rank: golden_calls, check: |output, _| succeeds(output) },
    Job { name: "streams", sizes: &[2], rank: streams, check: |output, _| succeeds(output) },
    Job {
        name: "killed",
        sizes: &[2, 4],
        rank: killed,
        check: |output, took| fails(output, took, "answering"),
    },
    Job {
        name: "missing",
        sizes: &[2],
        rank: missing,
        check: |output, took| fails(output, took, "rank 1: "),
    },
    Job {
        name: "leaves",
        sizes: &[2],
        rank: leaves,
        check: |output, took| {
            fails(output, took, "rank 0 of 2 ends the job: it left before the job was done")
        },
    },
];

/// Ranks beyond the processors, and root, as in a container, are asked for in Open MPI's words; MPICH allows both.
fn mpirun(job: &str, size: usize) -> Output {
    Command::new("mpirun")
        .args(["-n", &size.to_string()])
        .arg(std::env::current_exe().unwrap())
        .arg(job)
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env("OMPI_MCA_rmaps_base_oversubscribe", "1")
        .env("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe")
        .output()
        .expect("mpirun, of Debian's openmpi-bin or another MPI")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

#[track_caller]
fn succeeds(output: &Output) {
    print!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}: {}", output.status, said(output));
}

#[track_caller]
fn fails(output: &Output, took: Duration, why: &str) {
    let said = said(output);
    assert!(!output.status.success(), "{}: {said}", output.status);
    assert!(said.contains(why), "no {why:?} in {said}");
    assert!(took < PATIENCE, "it took {took:?}: {said}");
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
    let config = ModelConfig {
        dim: 256,
        n_layers: 8,
        n_heads: 8,
        n_kv_heads: 4,
        head_dim: 32,
        ffn_dim: 1024,
        vocab_size: 1024,
        norm_eps: 1e-5,
        rope_theta: 10000.0,
    };
    Llama::builder()
        .weights(Arc::new(RandomWeights::new(config, DType::F16, 1)))
        .tokenizer_from(tokenizer())
        .threads(1)
        .max_seq_len(4096)
        .communicator(Arc::<MpiCommunicator>::clone(mpi))
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

/// The last rank is killed while rank 0 waits for a long answer.
fn killed(mpi: Arc<MpiCommunicator>) -> ExitCode {
    if mpi.rank() + 1 == mpi.size() {
        std::thread::spawn(|| {
            std::thread::sleep(Duration::from_secs(1));
            let _ = Command::new("kill").args(["-9", &std::process::id().to_string()]).status();
        });
    }
    if mpi.rank() > 0 {
        random(&mpi).follow().unwrap();
        return ExitCode::SUCCESS;
    }
    let llama = random(&mpi).build().unwrap();
    println!("answering");
    loop {
        let options = GenerationOptions { max_gen_len: Some(4000), ..Default::default() };
        llama.generate(&[vec![TokenId(1)]], &options).unwrap();
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
