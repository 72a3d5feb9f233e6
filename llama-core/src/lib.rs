//! Chat with Llama 2: Meta's API in Rust, on interchangeable engines.

pub mod checkpoint;
pub mod sampler;
pub mod tokenizer;
