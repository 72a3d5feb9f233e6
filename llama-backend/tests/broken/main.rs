//! The test of the tests: every law is broken by a model that does what the law forbids, and by nothing else in that model.
//!
//! Each [`Fault`] is a mistake that engines make. A law that no fault breaks would be a law that cannot fail.

mod model;

use llama_backend::testing::{LAWS, Outcome, Suite, Tolerance};
use llama_backend::{
    Backend, BackendError, Capabilities, DType, LoadParams, MemoryPlan, Model, ModelConfig, ModelSource,
    SkippedLaw,
};
use model::{Fault, FaultyBackend};

/// A mistake, and a law that must name it.
const FAULTS: &[(Fault, &str)] = &[
    (Fault::HalfSplitRope, "equals_the_oracle"),
    (Fault::OneKvHeadServesAll, "equals_the_oracle"),
    (Fault::SwapsGateAndUp, "equals_the_oracle"),
    (Fault::FixedEps, "equals_the_oracle"),
    (Fault::FixedTheta, "equals_the_oracle"),
    (Fault::ReadsBf16AsF16, "every_dtype_equals_the_oracle"),
    (Fault::Sees256Positions, "long_sequences_equal_the_oracle"),
    (Fault::ForksShareState, "random_histories_equal_the_oracle"),
    (Fault::StaleTail, "random_histories_equal_the_oracle"),
    (Fault::DecodesOnePositionLate, "prefill_equals_decodes"),
    (Fault::ChunkIgnoresCache, "any_chunking_gives_the_same_logits"),
    (Fault::PadsRaggedRuns, "ragged_batch_equals_each_alone"),
    (Fault::RowsInSlotOrder, "permuted_runs_permute_rows"),
    (Fault::LastIsFirst, "last_is_the_last_row_of_all"),
    (Fault::NoneIsNotComputed, "rows_follow_wants"),
    (Fault::DecodesComeFirst, "mixed_prefill_and_decode_equal_apart"),
    (Fault::Noise, "same_input_same_bits"),
    (Fault::SkipsWorkOnThreeThreads, "any_thread_count_gives_the_same_logits"),
    (Fault::AddsToBuffer, "logits_buffer_is_overwritten"),
    (Fault::NoneKeepsRows, "logits_buffer_is_overwritten"),
    (Fault::StaleTail, "truncate_and_refeed_equals_fresh"),
    (Fault::StaleAfterFree, "reused_slot_is_fresh"),
    (Fault::FreesNeighbour, "freed_slot_leaves_others_alone"),
    (Fault::ForkTakesAll, "fork_equals_copy"),
    (Fault::ForksShareState, "forks_diverge"),
    (Fault::SelfForkFrees, "fork_onto_itself_truncates"),
    (Fault::AppendsBeforeCheck, "failed_forward_changes_nothing"),
    (Fault::ClampsTokens, "failed_forward_changes_nothing"),
    (Fault::FailedForkFrees, "failed_truncate_or_fork_changes_nothing"),
    (Fault::WastesLastPosition, "limits_are_exact"),
    (Fault::LoadsAnything, "refuses_bad_configs"),
    (Fault::LoadsAnything, "refuses_bad_params"),
    (Fault::LoadsAnything, "refuses_bad_weights"),
    (Fault::ForgetsParams, "model_says_what_it_was_loaded_with"),
    (Fault::PlansNoCache, "plan_grows_with_the_model"),
    (Fault::SharesStateBetweenModels, "models_do_not_disturb_each_other"),
];

#[test]
fn every_fault_is_caught_by_the_law_that_names_it() {
    for &(fault, law) in FAULTS {
        let backend = FaultyBackend(Some(fault));
        let outcome = Suite::new(&backend, Tolerance::default()).check(law);
        let violation = outcome.expect_err(&format!("{fault:?} keeps {law}"));
        assert_eq!(violation.law, law);
        println!("{fault:?}: {violation}");
    }
}

#[test]
fn every_law_can_fail() {
    for law in LAWS {
        assert!(FAULTS.iter().any(|&(_, named)| named == law.name), "no fault breaks {}", law.name);
    }
}

#[test]
fn without_a_fault_the_same_model_keeps_every_law() {
    let suite = Suite::new(&FaultyBackend(None), Tolerance::default());
    for law in LAWS {
        assert_eq!(suite.check(law.name), Ok(Outcome::Kept));
    }
}

#[test]
fn skipped_laws_are_not_checked() {
    let backend = Skips(&[SkippedLaw { law: "fork_equals_copy", reason: "no fork" }]);
    let suite = Suite::new(&backend, Tolerance::default());
    assert_eq!(suite.check("fork_equals_copy"), Ok(Outcome::Skipped("no fork")));
    assert_eq!(suite.check_skips(), Ok(()));
}

#[test]
fn skips_must_name_a_law_and_a_reason() {
    let unknown = Skips(&[SkippedLaw { law: "fork_equals_coppy", reason: "no fork" }]);
    let silent = Skips(&[SkippedLaw { law: "fork_equals_copy", reason: " " }]);
    for backend in [unknown, silent] {
        let suite = Suite::new(&backend, Tolerance::default());
        assert!(suite.check_skips().is_err(), "{backend:?}");
    }
}

#[test]
fn an_unknown_law_is_a_violation() {
    let suite = Suite::new(&FaultyBackend(None), Tolerance::default());
    assert!(suite.check("no_such_law").is_err());
}

/// A backend that skips laws, and could not keep any.
#[derive(Debug)]
struct Skips(&'static [SkippedLaw]);

impl Backend for Skips {
    fn name(&self) -> &'static str {
        "skips"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { dtypes: &[], skipped_laws: self.0, tensor_parallel: false }
    }

    fn plan(&self, _: &ModelConfig, _: DType, _: &LoadParams) -> MemoryPlan {
        unreachable!("a skipped law loads nothing")
    }

    fn load(&self, _: ModelSource, _: &LoadParams) -> Result<Box<dyn Model>, BackendError> {
        unreachable!("a skipped law loads nothing")
    }
}
