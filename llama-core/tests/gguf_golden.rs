//! GGUF files through the whole API: no tokenizer path, and, computed exactly, the greedy answers of the reference on the dequantised weights.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod golden;

use std::collections::HashMap;

use golden::{Golden, ids, same, text};
use llama_core::{Computation, GenerationOptions, Llama};

#[test]
fn greedy_answers_of_gguf_files() {
    let Some(golden) = Golden::load("gguf_stories260k.json") else { return };
    for engine in golden::engines() {
        let mut models: HashMap<String, Llama> = HashMap::new();
        golden.check_on(engine, |json| {
            let file = text(&json["file"]);
            if !models.contains_key(file) {
                let Some(path) = golden::data(&format!("stories260K-gguf/{file}")) else { return Ok(()) };
                let builder = Llama::builder().computation(Computation::Exact);
                let llama = builder.checkpoint(path).backend(engine).build().unwrap();
                models.insert(file.to_owned(), llama);
            }
            let llama = &models[file];
            let prompt = llama.tokenizer().encode_prompt(text(&json["prompt"]));
            same("prompt", &ids(&json["tokens"]), &prompt)?;
            let expected = ids(&json["dequant_f32"]["greedy32"]);
            let options =
                GenerationOptions { temperature: 0.0, max_gen_len: Some(32), ..GenerationOptions::default() };
            let (found, _) = llama.generate(&[prompt], &options).map_err(|error| error.to_string())?;
            same("greedy32", &expected, &found[0])
        });
    }
}
