//! The laws that every backend keeps, the oracle that they measure against, and a tiny seeded model to run them on.
//!
//! A law is written once, here, and run on every engine: two backends that pass agree with each other because both agree with
//! [`Oracle`], which is written to be read beside the paper and not to be fast. A backend's whole conformance test is
//!
//! ```ignore
//! llama_backend::conformance_tests!(MyBackend::new());
//! ```
//!
//! which gives one `#[test]` per law, by name. A law that an engine cannot keep is declared in
//! [`Capabilities::skipped_laws`](crate::Capabilities) and shows as skipped, with its reason, instead of silently passing.
//!
//! Laws report and do not panic: [`Suite::check`] gives a [`Violation`] as a value, so that the suite itself is tested by
//! handing it broken models.

mod flat;
mod laws;
mod oracle;
mod process;
mod random;
mod random_blocks;
mod rig;
mod rows;
mod suite;
mod thread_ranks;
mod threads;

pub use flat::FlatWeights;
pub use laws::LAWS;
pub use oracle::{NaiveBackend, Oracle};
pub use process::{prefill_and_decode, process_status};
pub use random::{RandomWeights, Rng};
pub use rows::together_and_alone;
pub use suite::{Law, OneModel, Outcome, Suite, Tolerance, Violation, check_skips, run};
pub use thread_ranks::ThreadRanks;
pub use threads::ThreadCommunicator;
