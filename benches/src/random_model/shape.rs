//! Shapes of models that people run.

use std::str::FromStr;

use llama_backend::ModelConfig;

use super::UnknownName;

/// A shape by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Shape {
    /// TinyLlama's: 1.1 billion parameters.
    TinyLlama,
    /// Llama 2 7B's.
    Llama7B,
    /// Llama 2 13B's.
    Llama13B,
    /// Llama 2 70B's.
    Llama70B,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::TinyLlama, Self::Llama7B, Self::Llama13B, Self::Llama70B];

    /// The name, as flags have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TinyLlama => "tinyllama",
            Self::Llama7B => "7b",
            Self::Llama13B => "13b",
            Self::Llama70B => "70b",
        }
    }

    /// The numbers.
    #[must_use]
    pub fn config(self) -> ModelConfig {
        let (dim, n_layers, n_heads, n_kv_heads, ffn_dim) = match self {
            Self::TinyLlama => (2048, 22, 32, 4, 5632),
            Self::Llama7B => (4096, 32, 32, 32, 11008),
            Self::Llama13B => (5120, 40, 40, 40, 13824),
            Self::Llama70B => (8192, 80, 64, 8, 28672),
        };
        ModelConfig {
            dim,
            n_layers,
            n_heads,
            n_kv_heads,
            head_dim: dim / n_heads,
            ffn_dim,
            vocab_size: 32000,
            norm_eps: 1e-5,
            rope_theta: 10000.0,
        }
    }
}

impl FromStr for Shape {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let found = Self::ALL.into_iter().find(|shape| shape.name() == name);
        found.ok_or_else(|| UnknownName::new("shape", name, Self::ALL.map(Self::name)))
    }
}
