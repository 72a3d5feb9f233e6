//! One checkpoint, one API, any engine: every engine that is compiled in, eight dialogs at a time, gives the ids that the default
//! engine gives to each dialog alone.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod golden;

use llama_core::{
    Computation, DType, Dialog, GenerationOptions, Llama, LlamaBuilder, Quantization, SAFETY_SYSTEM_PROMPT,
    TokenId,
};

const TINY_CHAT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-chat");
const N_DIALOGS: usize = 20;

/// Questions of every kind that tiny-chat knows, and some that it does not, under several system prompts.
fn dialogs() -> Vec<Dialog> {
    let systems = [
        None,
        Some("Always answer with Haiku"),
        Some("Always answer with emojis"),
        Some(SAFETY_SYSTEM_PROMPT),
    ];
    let asks = [
        "what is the recipe of mayonnaise?",
        "I am going to Paris, what should I see?",
        "Write a brief birthday message to John",
        "hello, who are you?",
        "Why is the sky blue, 😀 and où?",
    ];
    let dialogs = asks.iter().flat_map(|ask| systems.map(|system| (Dialog::new(*ask), system)));
    dialogs.map(|(dialog, system)| system.into_iter().fold(dialog, Dialog::with_system)).collect()
}

/// The ids that a model answers with, greedily and sampled.
fn answers(builder: LlamaBuilder) -> [Vec<Vec<TokenId>>; 2] {
    let llama = builder.checkpoint(TINY_CHAT).build().unwrap();
    let prompts: Vec<_> =
        dialogs().iter().map(|dialog| llama.tokenizer().encode_dialog(dialog).unwrap()).collect();
    [0.0, 0.6].map(|temperature| {
        let options = GenerationOptions { temperature, max_gen_len: Some(48), ..Default::default() };
        llama.generate(&prompts, &options).unwrap().0
    })
}

/// Asks every engine, and compares with the default one asked for each dialog alone.
fn alike(what: &str, builder: impl Fn() -> LlamaBuilder) {
    let expected = answers(builder().max_batch_size(1));
    assert!(expected.iter().all(|rows| rows.len() == N_DIALOGS && rows.iter().all(|row| !row.is_empty())));
    for engine in golden::engines() {
        let found = answers(builder().backend(engine));
        for (how, expected, found) in
            [("greedy", &expected[0], &found[0]), ("sampled", &expected[1], &found[1])]
        {
            let alike = expected.iter().zip(found).filter(|(expected, found)| expected == found).count();
            println!("{engine}, {what}, {how}: {alike} of {N_DIALOGS} dialogs answered alike");
            assert_eq!(expected, found, "{engine}, {what}, {how}");
        }
    }
}

#[test]
fn every_engine_answers_alike() {
    // f32 on every engine: how half precision is computed is theirs to choose.
    alike("f32", || Llama::builder().dtype(DType::F32));
}

/// Exactly, that is: fast, each engine rounds in its own way, and `logits_golden` says how far that may lead.
#[test]
fn every_engine_answers_alike_from_blocks() {
    alike("q4_0", || Llama::builder().quantize(Quantization::Q4_0).computation(Computation::Exact));
}
