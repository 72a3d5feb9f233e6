//! Hugging Face's `config.json`, beside the weights of the tiny model.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|config: &[u8]| fuzz::checkpoint(fuzz::open_hugging_face(config, fuzz::SAFETENSORS)));
