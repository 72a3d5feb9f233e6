//! The Llama 2 forward pass on [ONNX Runtime](https://onnxruntime.ai).
//!
//! A checkpoint becomes a graph of the engine's operators, built in memory when it is loaded. f32 weights are used where they
//! lie, in the reader's memory map; half-precision ones are widened to f32 as they are loaded, since the engine's processor
//! kernels know no other type: such a model takes twice its file.
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

mod export;
mod file;
mod graph;
mod kv_cache;
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
const DTYPES: &[DType] = &[DType::F32, DType::F16, DType::BF16];

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
        Capabilities { dtypes: DTYPES, skipped_laws: &[] }
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
