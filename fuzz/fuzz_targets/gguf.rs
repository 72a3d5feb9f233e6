//! A GGUF file: its header, its tensors, its tokenizer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llama_core::checkpoint;
use llama_core::tokenizer::Tokenizer;

fuzz_target!(|file: &[u8]| {
    fuzz::tokenizer(Tokenizer::from_bytes(file));
    fuzz::checkpoint(checkpoint::from_gguf_bytes(file.to_vec()));
});
