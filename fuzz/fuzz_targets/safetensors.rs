//! A safetensors file, beside the configuration of the tiny model.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| fuzz::checkpoint(fuzz::open_hugging_face(fuzz::CONFIG, file)));
