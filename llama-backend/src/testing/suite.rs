//! [`Suite`]: runs the laws on a backend, and [`conformance_tests!`](crate::conformance_tests), one `#[test]` for each.

use std::fmt;
use std::sync::Arc;

use super::LAWS;
use crate::{Backend, BackendError, Computation, LoadParams, ModelSource, WeightSource};

/// A law of the seam: its name, as the tests and [`SkippedLaw`](crate::SkippedLaw) have it, and what it says.
#[derive(Debug, Clone, Copy)]
pub struct Law {
    /// The name of its test.
    pub name: &'static str,
    /// What holds for every backend.
    pub statement: &'static str,
    pub(super) holds: fn(&Suite<'_>) -> Checked,
}

/// How far two logits may lie apart. The laws' models have logits of about -4..4.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// From the oracle's, which computes in f64: what f32 arithmetic and an engine's fast functions may cost.
    pub oracle: f32,
    /// From the engine's own by another route: prefill and decode may add in another order, and no more.
    pub routes: f32,
    /// From the oracle's, for f16 weights: an engine may multiply in their type, which rounds activations too.
    pub f16: f32,
    /// The same for bf16 weights.
    pub bf16: f32,
    /// From the oracle's, for quantised weights under [`Computation::Fast`](crate::Computation): activations are rounded to 8 bits.
    pub fast: f32,
}

impl Default for Tolerance {
    fn default() -> Self {
        Self { oracle: 1e-3, routes: 1e-4, f16: 1e-3, bf16: 1e-3, fast: 1e-3 }
    }
}

/// A backend and how exact it must be.
#[derive(Debug, Clone, Copy)]
pub struct Suite<'a> {
    pub(super) backend: &'a dyn Backend,
    pub(super) tolerance: Tolerance,
    pub(super) model: Option<&'a OneModel>,
    computation: Option<Computation>,
}

/// A model that is what it is: a file that holds its graph, say. The laws run on it instead of on models of any shape; those
/// that refuse bad weights are about weights still.
#[derive(Debug, Clone)]
pub struct OneModel {
    /// What the backend loads.
    pub source: ModelSource,
    /// The same model's weights, for the oracle. Their configuration is what the model says of itself.
    pub weights: Arc<dyn WeightSource>,
}

/// What came of a law that was not broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The law holds.
    Kept,
    /// The backend declares that it does not keep it, for this reason.
    Skipped(&'static str),
}

/// A broken law.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the {backend} backend breaks the law {law} ({statement}): {what}")]
pub struct Violation {
    /// The backend's name.
    pub backend: &'static str,
    /// The law's name.
    pub law: String,
    /// What it says.
    pub statement: &'static str,
    /// Where, what was found and what was expected.
    pub what: String,
}

impl<'a> Suite<'a> {
    /// The suite on this backend.
    #[must_use]
    pub fn new(backend: &'a dyn Backend, tolerance: Tolerance) -> Self {
        Self { backend, tolerance, model: None, computation: None }
    }

    /// The suite on this backend and the one model.
    #[must_use]
    pub fn on_model(backend: &'a dyn Backend, tolerance: Tolerance, model: &'a OneModel) -> Self {
        Self { backend, tolerance, model: Some(model), computation: None }
    }

    /// The same with every model computed so, whatever its law would ask for. By default quantised weights are computed
    /// [fast](Computation::Fast), but where a law asks for both.
    #[must_use]
    pub fn computing(mut self, computation: Computation) -> Self {
        self.computation = Some(computation);
        self
    }

    /// The limits of a law, computed as the suite says.
    pub(super) fn params(&self, params: &LoadParams) -> LoadParams {
        let computation = self.computation.unwrap_or(params.computation);
        LoadParams { computation, ..params.clone() }
    }

    /// Checks one law, unless the backend declares that it does not keep it.
    ///
    /// # Errors
    ///
    /// The [`Violation`], also where there is no law of this name.
    pub fn check(&self, law: &str) -> Result<Outcome, Violation> {
        let violation = |statement, what| Violation {
            backend: self.backend.name(),
            law: law.to_owned(),
            statement,
            what,
        };
        let Some(law) = LAWS.iter().find(|known| known.name == law) else {
            return Err(violation("laws have names", "there is no such law".to_owned()));
        };
        let skipped = self.backend.capabilities().skipped_laws;
        if let Some(skip) = skipped.iter().find(|skip| skip.law == law.name) {
            return Ok(Outcome::Skipped(skip.reason));
        }
        match (law.holds)(self) {
            Ok(()) => Ok(Outcome::Kept),
            Err(Broken(what)) => Err(violation(law.statement, what)),
        }
    }

    /// Checks that the laws which the backend skips exist and that it says why.
    ///
    /// # Errors
    ///
    /// The [`Violation`] names the first that does not.
    pub fn check_skips(&self) -> Result<(), Violation> {
        for skip in self.backend.capabilities().skipped_laws {
            let what = if LAWS.iter().all(|law| law.name != skip.law) {
                "there is no such law"
            } else if skip.reason.trim().is_empty() {
                "no reason is given"
            } else {
                continue;
            };
            return Err(Violation {
                backend: self.backend.name(),
                law: skip.law.to_owned(),
                statement: "a skipped law exists and has a reason",
                what: what.to_owned(),
            });
        }
        Ok(())
    }
}

/// The body of a test of [`conformance_tests!`](crate::conformance_tests): prints that the law was skipped, or panics with the
/// [`Violation`].
#[allow(clippy::panic, clippy::print_stdout, reason = "the body of a test")]
#[track_caller]
pub fn run(suite: Suite<'_>, law: &str) {
    match suite.check(law) {
        Ok(Outcome::Kept) => {}
        Ok(Outcome::Skipped(reason)) => println!("law {law} skipped: {reason}"),
        Err(violation) => panic!("{violation}"),
    }
}

/// The body of the test that [`Suite::check_skips`] is.
#[allow(clippy::panic, reason = "the body of a test")]
#[track_caller]
pub fn check_skips(suite: Suite<'_>) {
    if let Err(violation) = suite.check_skips() {
        panic!("{violation}");
    }
}

/// What a law gives.
pub(super) type Checked<T = ()> = Result<T, Broken>;

/// How a law was broken.
#[derive(Debug)]
pub(super) struct Broken(pub(super) String);

impl From<BackendError> for Broken {
    fn from(error: BackendError) -> Self {
        Self(format!("an error where there should be none: {error}"))
    }
}

impl Broken {
    /// Puts where it happened in front.
    pub(super) fn at(self, place: impl fmt::Display) -> Self {
        Self(format!("{place}: {}", self.0))
    }
}

/// The one list of laws: a table and a set of tests are made of it.
#[doc(hidden)]
#[macro_export]
macro_rules! __for_each_law {
    ([$($then:tt)+] $($args:tt)*) => {
        $($then)+! { [$($args)*]
            equals_the_oracle
                "logits equal the oracle's, whatever the model's shape",
            every_dtype_equals_the_oracle
                "logits equal the oracle's for weights of every declared type, read as they are stored",
            long_sequences_equal_the_oracle
                "logits equal the oracle's up to the last position of a long slot",
            random_histories_equal_the_oracle
                "after any history of forward, truncate and fork, logits equal the oracle's",
            prefill_equals_decodes
                "a run of n tokens gives the rows of n runs of one",
            any_chunking_gives_the_same_logits
                "a prompt gives the same rows however it is cut into runs",
            ragged_batch_equals_each_alone
                "runs of different lengths and positions in one batch give the rows of each alone",
            permuted_runs_permute_rows
                "the order of the runs is the order of the rows, and changes nothing else",
            last_is_the_last_row_of_all
                "Want::Last gives the last row of Want::All",
            rows_follow_wants
                "each run has as many rows as it wants, in the order of the runs",
            mixed_prefill_and_decode_equal_apart
                "prefill, chunks and decode in one forward give what they give apart",
            same_input_same_bits
                "the same calls give the same bits",
            any_thread_count_gives_the_same_logits
                "how many threads compute does not matter",
            logits_buffer_is_overwritten
                "what the buffer of logits held before does not matter",
            truncate_and_refeed_equals_fresh
                "a slot that was truncated and fed again is as one fed afresh",
            reused_slot_is_fresh
                "a freed slot keeps nothing of what it held",
            freed_slot_leaves_others_alone
                "freeing a slot and using it again does not change the others",
            fork_equals_copy
                "a forked slot is as one fed the prefix, whatever it held before",
            forks_diverge
                "slots that share a prefix go on independently",
            fork_onto_itself_truncates
                "a slot forked onto itself keeps the prefix",
            failed_forward_changes_nothing
                "a batch that breaks a rule is refused with the error of that rule, and every slot is as it was",
            failed_truncate_or_fork_changes_nothing
                "a truncation or fork that cannot be is refused, and every slot is as it was",
            limits_are_exact
                "every position, slot and batch token up to the limit can be used, and none above",
            refuses_bad_configs
                "a shape that makes no transformer is an error at load",
            refuses_bad_params
                "limits that make no model are an error at load",
            refuses_bad_weights
                "a tensor that is missing, mis-shaped, cut short, unreadable or of a type not taken is an error at load",
            model_says_what_it_was_loaded_with
                "a backend has a name, and a model gives back its configuration and limits",
            plan_grows_with_the_model
                "a plan counts every weight, grows linearly with slots and positions, and never overflows",
            models_do_not_disturb_each_other
                "two models at once on two threads give what each gives alone",
        }
    };
}

/// One `#[test]` per law, on a backend: an expression, how exact it is where the default [`Tolerance`] does not fit, and the
/// [`OneModel`] where there is one only.
///
/// ```
/// use llama_backend::testing::NaiveBackend;
///
/// llama_backend::conformance_tests!(NaiveBackend);
/// ```
#[macro_export]
macro_rules! conformance_tests {
    ($backend:expr $(,)?) => {
        $crate::conformance_tests!($backend, $crate::testing::Tolerance::default());
    };
    ($backend:expr, $tolerance:expr $(,)?) => {
        $crate::__for_each_law!([$crate::__law_tests]($backend, $tolerance));
    };
    ($backend:expr, $tolerance:expr, $model:expr $(,)?) => {
        $crate::__for_each_law!([$crate::__law_tests]($backend, $tolerance, $model));
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __law_tests {
    ([$suite:tt] $($law:ident $statement:literal,)*) => {
        $(
            #[doc = $statement]
            #[test]
            fn $law() {
                $crate::__with_suite!($suite suite => $crate::testing::run(suite, stringify!($law)));
            }
        )*

        /// The laws that the backend skips exist, and it says why.
        #[test]
        fn skipped_laws_exist() {
            $crate::__with_suite!($suite suite => $crate::testing::check_skips(suite));
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __with_suite {
    (($backend:expr, $tolerance:expr) $suite:ident => $body:expr) => {{
        let backend = $backend;
        let $suite = $crate::testing::Suite::new(&backend, $tolerance);
        $body
    }};
    (($backend:expr, $tolerance:expr, $model:expr) $suite:ident => $body:expr) => {{
        let (backend, model) = ($backend, $model);
        let $suite = $crate::testing::Suite::on_model(&backend, $tolerance, &model);
        $body
    }};
}
