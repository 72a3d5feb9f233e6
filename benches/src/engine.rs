//! The engines under measurement: the one place where benches choose how an engine computes.

use std::str::FromStr;
use std::sync::Arc;

use llama_backend::{
    Backend, BackendError, Capabilities, DType, Device, LoadParams, MemoryPlan, Model, ModelConfig,
    ModelSource,
};
use llama_core::BackendKind;

use crate::Error;

/// How products with quantised weights are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Computation {
    /// Dequantised weights times activations in f32.
    Exact,
    /// Activations of eight bits, block by block.
    Fast,
}

impl Computation {
    /// The name, as flags have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Fast => "fast",
        }
    }
}

impl FromStr for Computation {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let all = [Self::Exact, Self::Fast];
        all.into_iter().find(|it| it.name() == name).ok_or_else(|| "expected exact or fast".to_owned())
    }
}

/// Opens an engine on the processor; without a computation, with its default.
///
/// # Errors
///
/// Where it is not compiled in, or its library is missing.
pub fn open(kind: BackendKind, computation: Option<Computation>) -> Result<Arc<dyn Backend>, Error> {
    let backend = kind.open(Device::Cpu)?;
    let computation = match computation {
        None => return Ok(backend),
        Some(Computation::Exact) => llama_backend::Computation::Exact,
        Some(Computation::Fast) => llama_backend::Computation::Fast,
    };
    Ok(Arc::new(Computing { backend, computation }))
}

/// An engine that computes in one way, whatever it is asked.
#[derive(Debug)]
struct Computing {
    backend: Arc<dyn Backend>,
    computation: llama_backend::Computation,
}

impl Computing {
    fn params(&self, params: &LoadParams) -> LoadParams {
        let mut params = params.clone();
        params.computation = self.computation;
        params
    }
}

impl Backend for Computing {
    fn name(&self) -> &'static str {
        self.backend.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.backend.capabilities()
    }

    fn plan(&self, config: &ModelConfig, dtype: DType, params: &LoadParams) -> MemoryPlan {
        self.backend.plan(config, dtype, &self.params(params))
    }

    fn load(&self, source: ModelSource, params: &LoadParams) -> Result<Box<dyn Model>, BackendError> {
        self.backend.load(source, &self.params(params))
    }
}
