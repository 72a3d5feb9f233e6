//! Requests to the server, as bytes of a body: for a chat, and for a completion.
#![no_main]

#[allow(dead_code, unused_imports, reason = "the server reads more of them")]
#[path = "../../examples/src/bin/serve/request/mod.rs"]
mod request;

use libfuzzer_sys::fuzz_target;
use llama_core::GenerationOptions;

fuzz_target!(|body: &[u8]| {
    let defaults = GenerationOptions::default();
    for read in [request::chat, request::completion] {
        match read(body, &defaults) {
            Ok(request) => {
                if let request::Prompts::Dialog(dialog) = &request.prompts {
                    fuzz::dialog(dialog);
                }
            }
            Err(bad) => assert!(!bad.message.is_empty()),
        }
    }
});
