//! The oracle keeps the laws itself: the suite's first backend.

use llama_backend::testing::NaiveBackend;

llama_backend::conformance_tests!(NaiveBackend);
