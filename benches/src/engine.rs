//! The engines under measurement: the one place where benches choose how an engine computes.

use std::str::FromStr;
use std::sync::Arc;

use llama_backend::{Backend, Device};
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

/// A choice that an engine does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the {backend} backend has no {computation} computation")]
pub struct NoSuchComputation {
    backend: &'static str,
    computation: &'static str,
}

/// Opens an engine on the processor; without a computation, with its default.
///
/// # Errors
///
/// Where it is not compiled in, its library is missing, or it does not compute so.
pub fn open(kind: BackendKind, computation: Option<Computation>) -> Result<Arc<dyn Backend>, Error> {
    match (kind, computation) {
        // Every engine computes with dequantised weights so far.
        (_, None | Some(Computation::Exact)) => Ok(kind.open(Device::Cpu)?),
        (_, Some(computation)) => {
            Err(NoSuchComputation { backend: kind.name(), computation: computation.name() }.into())
        }
    }
}
