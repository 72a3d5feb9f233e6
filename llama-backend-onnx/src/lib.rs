//! The Llama 2 forward pass on [ONNX Runtime](https://onnxruntime.ai).
//!
//! A checkpoint becomes a graph of the engine's operators, built in memory when it is loaded. f32 weights are used where they
//! lie, in the reader's memory map; half-precision ones are widened to f32 as they are loaded, since the engine's processor
//! kernels know no other type: such a model takes twice its file.
//!
//! # Quantised weights
//!
//! Under [`Computation::Fast`](llama_backend::Computation::Fast), the default, ggml's blocks become those of the engine's `MatMulNBits`: the same numbers (equal to the bit, but
//! for one rounding where a type has minimums, which f32 arithmetic makes anyway), multiplied with activations that are rounded to 8 bits, a
//! block of a row at a time. A row is never rounded with its neighbours. On processors with AVX-512 VNNI it has the same bits alone and in
//! any batch; kernels for others may sum one row in another order than several, and the next rounding may carry that on. Under
//! [`Computation::Exact`](llama_backend::Computation::Exact) the weights are widened to f32 at load, and multiplied as f32 is.
//!
//! How far logits of about -4..4 lie from the same model's in f64 at most (`tests/quantized.rs` holds them to it), and the bytes that the
//! engine keeps for a weight:
//!
//! Weights | distance, exact | bytes | distance, fast | bytes
//! --- | --- | --- | --- | ---
//! f32, f16, bf16 | 1e-3 | 4 | the same | 4
//! `q4_0` | 1e-3 | 4 | 2e-1 | 0.875
//! `q4_1`, `q4_K` | 1e-3 | 4 | 2e-1 | 1
//! `q5_0`, `q8_0`, `iq4_nl`, `iq4_xs` | 1e-3 | 4 | 2e-1 | 1.375
//! `q5_1`, `q5_K` | 1e-3 | 4 | 2e-1 | 1.5
//! `q3_K` | 1e-3 | 4 | 2e-1 | 1.25
//! `q2_K` | 1e-3 | 4 | 2e-1 | 1.5
//! `q6_K` | 1e-3 | 4 | 2e-1 | 1.75
//!
//! On the files for which llama.cpp's distance from the same weights in f32 is known, this is 0.6 to 1.2 times as far, as chance has it: both
//! round activations to 8 bits by blocks (`logits_golden.rs` of llama-core).
//!
//! Those are more bytes than a file has: the engine multiplies 4 and 8 bits only, keeps each scale in f32 and twice, and beside it a sum that it
//! needs. While such a model is loaded, there is a second copy. Token embeddings are looked up where the checkpoint holds them, whatever their
//! type.
//!
//! # Getting ONNX Runtime
//!
//! The library is not linked but loaded, when the first backend is opened: version 1.24 or later, 1.31.1 in our tests.
//! [`OnnxBackend::with_library`] names it; [`OnnxBackend::new`] takes the one that the environment variable `ORT_DYLIB_PATH`
//! names, or else lets the system's loader look for it. That variable is the engine's own, known to everybody who has an ONNX
//! Runtime of his own: it says where a library lies, as the loader's own variables do, and nothing about what is computed.
//! Where there is no library, or an older one, a [`BackendError::Library`] says what to install.
//!
//! ```
//! use llama_backend::{Backend, Device};
//! use llama_backend_onnx::OnnxBackend;
//!
//! let backend = OnnxBackend::new(Device::Cpu)?;
//! assert_eq!(backend.name(), "onnx");
//! assert!(backend.capabilities().skipped_laws.is_empty());
//! # Ok::<(), llama_backend::BackendError>(())
//! ```

#[cfg(target_endian = "big")]
compile_error!("weights are little-endian, and used where they lie");

mod blocks;
mod embedding;
mod export;
mod file;
mod graph;
mod kv_cache;
mod linear;
mod load;
mod model;
mod protobuf;
mod rope;
mod runtime;
mod sys;
#[cfg(test)]
mod tests;

use std::path::Path;

use llama_backend::{
    Backend, BackendError, Capabilities, DType, Device, LoadParams, MemoryPlan, Model, ModelConfig,
    ModelSource,
};
use ort::environment::Environment;

pub use export::{ExportError, export_onnx};

/// The engine's name in errors.
const NAME: &str = "onnx";
/// The types of matrices that are taken.
const DTYPES: &[DType] = DType::ALL;

/// ONNX Runtime on the processor.
#[derive(Debug, Clone)]
pub struct OnnxBackend {
    environment: Environment,
}

impl OnnxBackend {
    /// The engine on a device, in the library that `ORT_DYLIB_PATH` names or the system's loader finds.
    ///
    /// # Errors
    ///
    /// [`BackendError::Unsupported`] for a device that is not the processor; [`BackendError::Library`] where ONNX Runtime is not
    /// there or is too old. Later attempts are free to succeed.
    pub fn new(device: Device) -> Result<Self, BackendError> {
        if device != Device::Cpu {
            let what = format!("the device {device}: it computes on the processor alone");
            return Err(BackendError::Unsupported { backend: NAME, what });
        }
        Ok(Self { environment: runtime::environment(None)? })
    }

    /// The engine on the processor, in this library.
    ///
    /// # Errors
    ///
    /// [`BackendError::Library`] where the file is no ONNX Runtime, one that is too old, or another than the process has
    /// loaded already: there is one ONNX Runtime in a process.
    pub fn with_library(path: impl AsRef<Path>) -> Result<Self, BackendError> {
        Ok(Self { environment: runtime::environment(Some(path.as_ref()))? })
    }

    /// The engine on the processor, in the environment of a program that uses `ort` itself: a process has but one.
    #[must_use]
    pub fn with_environment(environment: Environment) -> Self {
        Self { environment }
    }
}

impl Backend for OnnxBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { dtypes: DTYPES, skipped_laws: &[], tensor_parallel: false }
    }

    fn plan(&self, config: &ModelConfig, dtype: DType, params: &LoadParams) -> MemoryPlan {
        load::plan(config, dtype, params)
    }

    fn load(&self, source: ModelSource, params: &LoadParams) -> Result<Box<dyn Model>, BackendError> {
        match source {
            ModelSource::Weights(weights) => Ok(Box::new(load::load(&self.environment, &*weights, params)?)),
            ModelSource::Graph { path, config } => {
                Ok(Box::new(file::load(&self.environment, &path, &config, params)?))
            }
            _ => Err(BackendError::Unsupported {
                backend: NAME,
                what: "a source that is neither weights nor a graph".to_owned(),
            }),
        }
    }
}

/// What ONNX Runtime said.
fn engine(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> BackendError {
    BackendError::engine(NAME, error)
}
