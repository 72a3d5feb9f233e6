//! The Llama 2 forward pass on [candle](https://github.com/huggingface/candle).
//!
//! Our own model code on candle's tensors. Weights keep the type that the checkpoint stores them in. On the CPU those in f32 stay
//! in the reader's memory map itself; half precision and quantised ones are packed for the kernels, the latter unless the caller wants them
//! exact ([`Computation`]). Sums and norms are f32, and so are activations but for products of packed matrices,
//! where they are rounded to 8 bits (16 for the output). The KV cache is f32, or f16 on request.
//!
//! On the CPU the operations are kernels of ours, called as candle's custom operations and chosen for the processor when a model is
//! loaded: AVX-512 with VNNI (and AMX), AVX2 with FMA, or plain Rust. A row's result is the same to the bit alone, in any batch, in any chunking and
//! on any number of threads. On a GPU the operations are candle's own. (Where the processor has AMX, a process on Linux asks for its tiles
//! when a backend is made. The system then saves 8 KiB more of a thread for a signal handler, which an alternate stack must have room for.)
//!
//! Feature | What it adds
//! --- | ---
//! `cuda` | [`Device::Cuda`]. **Untested**: it has not been run on such a device.
//! `metal` | [`Device::Metal`]. **Untested**: it has not been run on such a device.
//!
//! ```
//! use llama_backend::{Backend, Device};
//! use llama_backend_candle::CandleBackend;
//!
//! let backend = CandleBackend::new(Device::Cpu)?;
//! assert_eq!(backend.name(), "candle");
//! assert!(backend.capabilities().skipped_laws.is_empty());
//! # Ok::<(), llama_backend::BackendError>(())
//! ```

#[cfg(target_endian = "big")]
compile_error!("weights are little-endian, and used where they lie");

mod attention;
mod kernels;
mod kv_cache;
mod linear;
mod load;
mod model;
mod ops;
mod slices;
mod split;
mod tensors;
#[cfg(test)]
mod test_util;

use llama_backend::{
    Backend, BackendError, Capabilities, Computation, DType, Device, LoadParams, MemoryPlan, Model,
    ModelConfig, ModelSource,
};

use crate::kernels::Isa;

/// The engine's name in errors.
const NAME: &str = "candle";
/// The types of matrices that are taken as they are stored.
const DTYPES: &[DType] = DType::ALL;

/// The candle engine on one device.
#[derive(Debug, Clone)]
pub struct CandleBackend {
    place: Place,
}

/// Which implementation of the operations a model uses.
#[derive(Debug, Clone)]
enum Place {
    /// This crate's kernels, for these instructions.
    Host(Isa),
    /// candle's operations on a device.
    Tensors(candle_core::Device),
}

impl Default for CandleBackend {
    /// The engine on the CPU.
    fn default() -> Self {
        Self { place: Place::Host(Isa::detect()) }
    }
}

impl CandleBackend {
    /// The engine on a device.
    ///
    /// # Errors
    ///
    /// [`BackendError::Unsupported`] for a device whose cargo feature is off; [`BackendError::Engine`] when the device cannot be
    /// opened.
    pub fn new(device: Device) -> Result<Self, BackendError> {
        let unsupported = |feature| {
            let what = format!("the device {device}: build it with the cargo feature `{feature}`");
            Err(BackendError::Unsupported { backend: NAME, what })
        };
        let opened = match device {
            Device::Cpu => return Ok(Self::default()),
            Device::Cuda(_) if !cfg!(feature = "cuda") => return unsupported("cuda"),
            Device::Cuda(index) => candle_core::Device::new_cuda(index),
            Device::Metal(_) if !cfg!(feature = "metal") => return unsupported("metal"),
            Device::Metal(index) => candle_core::Device::new_metal(index),
            other => {
                let what = format!("the device {other}");
                return Err(BackendError::Unsupported { backend: NAME, what });
            }
        };
        let place = Place::Tensors(opened.map_err(engine)?);
        Ok(Self { place })
    }
}

impl Backend for CandleBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { dtypes: DTYPES, skipped_laws: &[], tensor_parallel: true }
    }

    fn plan(&self, config: &ModelConfig, dtype: DType, params: &LoadParams) -> MemoryPlan {
        load::plan(&self.place, config, dtype, params)
    }

    fn computation(&self, asked: Computation) -> Computation {
        load::computation(&self.place, asked)
    }

    fn load(&self, source: ModelSource, params: &LoadParams) -> Result<Box<dyn Model>, BackendError> {
        match source {
            ModelSource::Weights(weights) => Ok(Box::new(load::load(&self.place, &*weights, params)?)),
            ModelSource::Graph { path, .. } => Err(BackendError::Unsupported {
                backend: NAME,
                what: format!(
                    "the graph {}: give it to the onnx backend, or load the checkpoint that it was made of",
                    path.display()
                ),
            }),
            _ => Err(BackendError::Unsupported {
                backend: NAME,
                what: "a source that is not a checkpoint's weights".to_owned(),
            }),
        }
    }
}

/// What candle, or a library beside it, said.
fn engine(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> BackendError {
    BackendError::engine(NAME, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The laws on the kernels without SIMD, which this machine would not choose.
    mod scalar {
        use llama_backend::testing::Tolerance;

        use crate::{CandleBackend, Isa, Place};

        llama_backend::conformance_tests!(
            CandleBackend { place: Place::Host(Isa::Scalar) },
            Tolerance { fast: 1e-1, ..Tolerance::default() }
        );
    }

    /// The laws on candle's own operations, which devices use: here on the CPU.
    mod tensors {
        use crate::{CandleBackend, Place};

        llama_backend::conformance_tests!(CandleBackend { place: Place::Tensors(candle_core::Device::Cpu) });
    }

    /// The same on two ranks.
    mod tensors_on_ranks {
        use llama_backend::testing::{ThreadRanks, Tolerance};

        use crate::{CandleBackend, Place};

        llama_backend::conformance_tests!(
            ThreadRanks::at_most(
                std::sync::Arc::new(CandleBackend { place: Place::Tensors(candle_core::Device::Cpu) }),
                2
            ),
            Tolerance::default()
        );
    }

    #[test]
    fn a_planned_kv_cache_is_what_is_allocated() {
        use llama_backend::testing::RandomWeights;

        let tensors = Place::Tensors(candle_core::Device::Cpu);
        for (n_kv_heads, n_layers, max_seq_len, n_slots) in [(1, 1, 1, 1), (2, 3, 50, 5), (4, 2, 77, 2)] {
            let config = ModelConfig {
                dim: 32,
                n_layers,
                n_heads: 4,
                n_kv_heads,
                head_dim: 8,
                ffn_dim: 32,
                vocab_size: 11,
                norm_eps: 1e-5,
                rope_theta: 1e4,
            };
            let weights = RandomWeights::new(config.clone(), DType::F32, 1);
            for (place, kv_dtype) in [
                (Place::Host(Isa::detect()), DType::F32),
                (Place::Host(Isa::Scalar), DType::F16),
                (tensors.clone(), DType::F32),
            ] {
                let mut params = LoadParams::new(max_seq_len, n_slots);
                params.kv_dtype = kv_dtype;
                let planned = load::plan(&place, &config, DType::F32, &params).kv_cache;
                let model = load::load(&place, &weights, &params).unwrap();
                assert_eq!(model.cache.n_bytes() as u64, planned, "{place:?}, {params:?}");
            }
        }
    }

    #[test]
    fn a_device_that_is_not_compiled_in_names_its_feature() {
        for (device, feature) in [(Device::Cuda(1), "cuda"), (Device::Metal(0), "metal")] {
            if cfg!(any(feature = "cuda", feature = "metal")) {
                continue;
            }
            let error = CandleBackend::new(device).unwrap_err();
            assert!(matches!(error, BackendError::Unsupported { backend: "candle", .. }));
            assert!(error.to_string().contains(&format!("feature `{feature}`")), "{error}");
        }
    }
}
