//! The laws of the seam, on libtorch: one test each, and none skipped.

use llama_backend::testing::Tolerance;
use llama_backend_tch::TchBackend;

llama_backend::conformance_tests!(TchBackend::default());

/// With products in the weights' type, which round activations to it. f32 weights are as exact as ever.
mod half_products {
    use super::{TchBackend, Tolerance};

    llama_backend::conformance_tests!(
        TchBackend::default().with_half_products(),
        Tolerance { f16: 1e-2, bf16: 1e-1, ..Tolerance::default() }
    );
}
