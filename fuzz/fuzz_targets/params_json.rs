//! Meta's `params.json`, beside the weights of the tiny model.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llama_core::checkpoint;

fuzz_target!(|params: &[u8]| fuzz::checkpoint(checkpoint::from_bytes(params, [fuzz::PTH])));
