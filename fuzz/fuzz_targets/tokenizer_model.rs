//! `tokenizer.model`, and whatever else may be taken for a tokenizer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llama_core::tokenizer::Tokenizer;

fuzz_target!(|bytes: &[u8]| fuzz::tokenizer(Tokenizer::from_bytes(bytes)));
