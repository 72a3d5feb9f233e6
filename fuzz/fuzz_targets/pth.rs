//! A `.pth` file: the archive, the pickle in it, and the format from before archives.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llama_core::checkpoint;

fuzz_target!(|pth: &[u8]| fuzz::checkpoint(checkpoint::from_bytes(fuzz::PARAMS, [pth.to_vec()])));
