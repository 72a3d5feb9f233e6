//! The engines under measurement: the one place where benches choose how an engine computes.

use std::fmt;
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

/// How an engine is to compute, and keep its cache, where that is not its default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::Args)]
pub struct Choices {
    /// How quantised weights are computed with: exact or fast [default: the engine's]
    #[arg(long)]
    pub computation: Option<Computation>,
    /// The type of the KV cache: f32 or f16 [default: f32]
    #[arg(long, value_parser = cache_type)]
    pub cache_type: Option<DType>,
}

fn cache_type(name: &str) -> Result<DType, String> {
    let all = [DType::F32, DType::F16];
    all.into_iter().find(|it| it.to_string() == name).ok_or_else(|| "expected f32 or f16".to_owned())
}

impl fmt::Display for Choices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.computation.map_or("its default", Computation::name))?;
        self.cache_type.map_or(Ok(()), |dtype| write!(f, ", {dtype} cache"))
    }
}

/// Opens an engine on the processor, to do as is chosen whatever it is asked.
///
/// # Errors
///
/// Where it is not compiled in, or its library is missing.
pub fn open(kind: BackendKind, choices: Choices) -> Result<Arc<dyn Backend>, Error> {
    Ok(Arc::new(Chosen { backend: kind.open(Device::Cpu)?, choices }))
}

#[derive(Debug)]
struct Chosen {
    backend: Arc<dyn Backend>,
    choices: Choices,
}

impl Chosen {
    fn chosen(&self, asked: llama_backend::Computation) -> llama_backend::Computation {
        match self.choices.computation {
            None => asked,
            Some(Computation::Exact) => llama_backend::Computation::Exact,
            Some(Computation::Fast) => llama_backend::Computation::Fast,
        }
    }

    fn params(&self, params: &LoadParams) -> LoadParams {
        let mut params = params.clone();
        params.computation = self.chosen(params.computation);
        if let Some(dtype) = self.choices.cache_type {
            params.kv_dtype = dtype;
        }
        params
    }
}

impl Backend for Chosen {
    fn name(&self) -> &'static str {
        self.backend.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.backend.capabilities()
    }

    fn computation(&self, asked: llama_backend::Computation) -> llama_backend::Computation {
        self.backend.computation(self.chosen(asked))
    }

    fn plan(&self, config: &ModelConfig, dtype: DType, params: &LoadParams) -> MemoryPlan {
        self.backend.plan(config, dtype, &self.params(params))
    }

    fn load(&self, source: ModelSource, params: &LoadParams) -> Result<Box<dyn Model>, BackendError> {
        self.backend.load(source, &self.params(params))
    }
}
