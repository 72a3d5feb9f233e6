//! The Llama 2 forward pass on [libtorch](https://docs.pytorch.org/cppdocs/), through [tch](https://github.com/LaurentMazare/tch-rs).
//!
//! Our own model code on libtorch's tensors. Weights stay as the checkpoint stores them, quantised blocks included, on the CPU in the
//! reader's memory map itself; activations, products, norms and the KV cache are f32: a matrix in half precision or in blocks is widened
//! tile by tile while it is multiplied.
//!
//! Quantised weights give the numbers of the same weights in f32, under either [`Computation`](llama_backend::Computation), and cost their
//! file's size in memory. Reading the blocks is work for the one thread that calls, at each step: a prompt hardly notices, the decode of a
//! row takes longer than with the weights in f32, as four to eight times the memory would have them. libtorch's own products of
//! small integers would be faster and not the same weights; `linear.rs` says what each of them rounds.
//!
//! libtorch's own products in half precision round the activations and the results to that type. Where they are faster, which is
//! above all the decode of one row, [`TchBackend::with_half_products`] chooses them: about twice as fast, and no longer equal to the
//! reference. How far logits of about -4..4 lie from the same model's in f64 at most (`tests/half.rs` holds them to it):
//!
//! Weights | as it comes | with half products: decode of one row | more rows at a time
//! --- | --- | --- | ---
//! f32, quantised | 1e-3 | 1e-3 | 1e-3
//! f16 | 1e-3 | 1e-2 | 1e-3
//! bf16 | 1e-3 | 1e-1 | 1e-3; on processors with AVX-512 BF16 1e-1
//!
//! A half product of f16 weights overflows where an activation is above 65504, as the reference does when it runs in float16.
//!
//! # Threads
//!
//! libtorch computes on the thread that calls and on its own pool (OpenMP's, one for each calling thread), never on another: nothing
//! here records gradients or runs TorchScript, which are what its other pools are for. How many threads a model uses is
//! [`LoadParams::threads`]. libtorch has one setting for the process and a copy for each thread, so each forward pass sets its own
//! first: two models on two threads keep to two counts.
//!
//! # Building
//!
//! libtorch 2.13.0 is found by the variable `LIBTORCH`; `scripts/setup-libtorch.sh` of the repository fetches it. A program finds the
//! shared library by its rpath or `LD_LIBRARY_PATH`; this crate's build script hands the folder to its dependents' as
//! `DEP_LLAMA_BACKEND_TCH_LIBTORCH_LIB`.
//!
//! Feature | What it adds
//! --- | ---
//! `doc-only` | Builds the documentation without libtorch, and nothing that runs.
//!
//! [`Device::Cuda`] needs no feature, but a libtorch that was built for it. **Untested**: it has not been run on such a device.
//!
//! ```no_run
//! use llama_backend::{Backend, Device};
//! use llama_backend_tch::TchBackend;
//!
//! let backend = TchBackend::new(Device::Cpu)?;
//! assert_eq!(backend.name(), "tch");
//! assert!(backend.capabilities().skipped_laws.is_empty());
//! # Ok::<(), llama_backend::BackendError>(())
//! ```

#[cfg(target_endian = "big")]
compile_error!("weights are little-endian, and used where they lie");

mod attention;
#[doc(hidden)]
pub mod for_benches;
mod kv_cache;
mod linear;
mod load;
mod model;

use llama_backend::{
    Backend, BackendError, Capabilities, DType, Device, LoadParams, MemoryPlan, Model, ModelConfig,
    ModelSource,
};

/// The engine's name in errors.
const NAME: &str = "tch";
/// The types of matrices that are taken as they are stored.
const DTYPES: &[DType] = DType::ALL;

/// What tch's fallible functions give.
type Result<T> = std::result::Result<T, tch::TchError>;

/// The libtorch engine on one device.
#[derive(Debug, Clone)]
pub struct TchBackend {
    device: tch::Device,
    half_products: bool,
}

impl Default for TchBackend {
    /// The engine on the CPU.
    fn default() -> Self {
        Self { device: tch::Device::Cpu, half_products: false }
    }
}

impl TchBackend {
    /// The engine on a device.
    ///
    /// # Errors
    ///
    /// [`BackendError::Unsupported`] for a device that this libtorch was not built for or does not find.
    pub fn new(device: Device) -> std::result::Result<Self, BackendError> {
        let unsupported = |what| Err(BackendError::Unsupported { backend: NAME, what });
        match device {
            Device::Cpu => Ok(Self::default()),
            Device::Cuda(index) => {
                // How many there are; 0 too where libtorch knows no CUDA.
                let n_devices = usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
                if index >= n_devices {
                    let what = format!("the device {device}: this libtorch finds {n_devices} CUDA devices");
                    return unsupported(what);
                }
                Ok(Self { device: tch::Device::Cuda(index), half_products: false })
            }
            other => unsupported(format!("the device {other}")),
        }
    }

    /// The same engine, multiplying f16 and bf16 weights in their own type where libtorch is faster so. See the tolerances above.
    #[must_use]
    pub fn with_half_products(mut self) -> Self {
        self.half_products = true;
        self
    }
}

impl Backend for TchBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { dtypes: DTYPES, skipped_laws: &[], tensor_parallel: false }
    }

    fn plan(&self, config: &ModelConfig, dtype: DType, params: &LoadParams) -> MemoryPlan {
        load::plan(self, config, dtype, params)
    }

    fn load(
        &self,
        source: ModelSource,
        params: &LoadParams,
    ) -> std::result::Result<Box<dyn Model>, BackendError> {
        match source {
            ModelSource::Weights(weights) => Ok(Box::new(load::load(self, &*weights, params)?)),
            _ => Err(BackendError::Unsupported {
                backend: NAME,
                what: "a source that is not a checkpoint's weights; the onnx backend runs graphs".to_owned(),
            }),
        }
    }
}

/// What libtorch said: its first lines, without the C++ stack that follows them.
fn engine(error: tch::TchError) -> BackendError {
    BackendError::engine(NAME, message(&error))
}

fn message(error: &tch::TchError) -> String {
    let text = error.to_string();
    text.split("\nException raised from").next().unwrap_or_default().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_is_a_typed_error() {
        for (device, what) in [(Device::Cuda(4096), "cuda:4096"), (Device::Metal(0), "metal:0")] {
            let error = TchBackend::new(device).unwrap_err();
            assert!(matches!(error, BackendError::Unsupported { backend: "tch", .. }));
            assert!(error.to_string().contains(what), "{error}");
        }
    }

    #[test]
    fn errors_have_no_stack() {
        let error = tch::Tensor::f_zeros([-1], (tch::Kind::Float, tch::Device::Cpu)).unwrap_err();
        let text = engine(error).to_string();
        assert!(text.contains("non-negative") && !text.contains("frame #"), "{text}");
    }
}
