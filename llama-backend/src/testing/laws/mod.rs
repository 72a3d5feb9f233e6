//! The laws, by what they are about. Each is a function of the same name as its test.

mod against_oracle;
mod histories;
mod limits;
mod loading;
mod routes;
mod slots;

use super::suite::Law;
use against_oracle::{equals_the_oracle, every_dtype_equals_the_oracle, long_sequences_equal_the_oracle};
use histories::random_histories_equal_the_oracle;
use limits::{failed_forward_changes_nothing, failed_truncate_or_fork_changes_nothing, limits_are_exact};
use loading::{
    model_says_what_it_was_loaded_with, models_do_not_disturb_each_other, plan_grows_with_the_model,
    refuses_bad_configs, refuses_bad_params, refuses_bad_weights,
};
use routes::{
    any_chunking_gives_the_same_logits, last_is_the_last_row_of_all, logits_buffer_is_overwritten,
    mixed_prefill_and_decode_equal_apart, permuted_runs_permute_rows, prefill_equals_decodes,
    ragged_batch_equals_each_alone, rows_follow_wants, same_input_same_bits,
};
use slots::{
    fork_equals_copy, fork_onto_itself_truncates, forks_diverge, freed_slot_leaves_others_alone,
    reused_slot_is_fresh, truncate_and_refeed_equals_fresh,
};

macro_rules! table {
    ([] $($law:ident $statement:literal,)*) => {
        &[$(Law { name: stringify!($law), statement: $statement, holds: $law }),*]
    };
}

/// Every law, in the order of the tests.
pub const LAWS: &[Law] = crate::__for_each_law!([table]);
