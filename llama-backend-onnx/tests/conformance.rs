//! The laws of the seam, on ONNX Runtime: one test each, and none skipped.

use llama_backend::Device;
use llama_backend_onnx::OnnxBackend;

llama_backend::conformance_tests!(OnnxBackend::new(Device::Cpu).unwrap());
