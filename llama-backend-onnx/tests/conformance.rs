//! The laws of the seam, on ONNX Runtime: one test each, and none skipped.

use llama_backend::Device;
use llama_backend::testing::Tolerance;
use llama_backend_onnx::OnnxBackend;

// `tests/quantized.rs` has the table.
llama_backend::conformance_tests!(
    OnnxBackend::new(Device::Cpu).unwrap(),
    Tolerance { fast: 2e-1, ..Tolerance::default() }
);
