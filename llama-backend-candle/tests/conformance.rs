//! The laws of the seam, on candle: one test each, and none skipped.

use llama_backend_candle::CandleBackend;

llama_backend::conformance_tests!(CandleBackend::default());
