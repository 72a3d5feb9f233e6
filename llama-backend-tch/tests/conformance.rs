//! The laws of the seam, on libtorch: one test each, and none skipped.

use llama_backend::testing::Tolerance;
use llama_backend_tch::TchBackend;

/// The engine as it comes: a decode of half-precision weights rounds activations to their type.
mod fast {
    use super::{TchBackend, Tolerance};

    llama_backend::conformance_tests!(
        TchBackend::default(),
        Tolerance { f16: 1e-2, bf16: 1e-1, ..Tolerance::default() }
    );
}

/// With every product in f32: every type within the tolerance of f32.
mod exact {
    use super::TchBackend;

    llama_backend::conformance_tests!(TchBackend::default().exact());
}
