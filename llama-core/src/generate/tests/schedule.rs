//! The scheduler's laws, without an engine.

use std::sync::Arc;

use llama_backend::{Slot, TokenId, Want};
use proptest::prelude::*;

use super::super::request::RequestId;
use super::super::scheduler::{Job, Scheduler};

/// A prompt that shares its beginning with no other of another number.
fn prompt(number: usize, len: usize) -> Arc<[TokenId]> {
    vec![TokenId(number as u32); len].into()
}

fn job(number: usize, n_prefill: usize, rows_from: Option<usize>) -> Job {
    Job { id: RequestId(number as u64), prompt: prompt(number, n_prefill), n_prefill, rows_from }
}

/// Feeds what is planned, with tokens that are never looked at; the tokens of each job.
fn step(scheduler: &mut Scheduler) -> Vec<(u64, usize)> {
    scheduler.admit();
    let steps = scheduler.plan();
    for step in &steps {
        scheduler.fed(step, &vec![TokenId(step.id.0 as u32); step.n_tokens]);
    }
    let mut fed: Vec<_> = steps.iter().map(|step| (step.id.0, step.n_tokens)).collect();
    fed.sort_unstable();
    fed
}

#[test]
fn a_short_prompt_does_not_wait_for_long_ones() {
    let mut scheduler = Scheduler::new(8, 8, 520);
    for (number, len) in [4000, 3000, 20, 100].into_iter().enumerate() {
        scheduler.submit(job(number, len, None));
    }
    assert_eq!(step(&mut scheduler), [(0, 260), (1, 140), (2, 20), (3, 100)]);
}

#[test]
fn a_long_prompt_has_half_of_each_pass_however_many_short_ones_come() {
    for rows_from in [None, Some(0)] {
        let mut scheduler = Scheduler::new(4, 4, 516);
        scheduler.submit(job(0, 2000, rows_from));
        let mut fed = 0;
        for pass in 1..20 {
            for number in 0..3 {
                scheduler.submit(job(3 * pass + number, 400, rows_from));
            }
            let steps = step(&mut scheduler);
            fed += steps.iter().find(|(id, _)| *id == 0).map_or(0, |(_, n_tokens)| *n_tokens);
            for (id, _) in steps.iter().filter(|(id, _)| *id != 0) {
                scheduler.finish(RequestId(*id)); // and another comes
            }
            if fed == 2000 {
                assert!(rows_from.is_some() || pass <= 8, "{pass}");
                break;
            }
            assert!(fed >= pass * if rows_from.is_some() { 128 } else { 250 }, "{pass}: {fed}");
        }
        assert_eq!(fed, 2000);
    }
}

#[test]
fn who_waits_for_a_prefix_keeps_the_place_that_was_free() {
    let mut scheduler = Scheduler::new(2, 2, 520);
    let same = |number: u64| Job { id: RequestId(number), ..job(0, 300, None) };
    scheduler.submit(same(0));
    scheduler.submit(same(1));
    scheduler.submit(job(2, 300, None));
    assert_eq!(step(&mut scheduler), [(0, 300)]);
    assert_eq!(
        step(&mut scheduler),
        [(1, 1)],
        "behind the prefix that was waited for, and before who came later"
    );
}

#[test]
fn a_row_whose_slot_was_lost_is_fed_from_its_beginning() {
    let mut scheduler = Scheduler::new(1, 1, 520);
    scheduler.submit(job(0, 600, None));
    assert_eq!(step(&mut scheduler), [(0, 520)]);
    scheduler.forget(Slot(0));
    assert_eq!(scheduler.plan()[0].start_pos, 0);
}

proptest! {
    /// Whatever is asked, in whatever order: every job's tokens are fed once and in order, never more than the limits.
    #[test]
    fn every_token_is_fed_once(
        jobs in prop::collection::vec((1usize..900, 0usize..6, prop::option::of(0usize..900)), 1..12),
        n_slots in 1usize..5,
        idle_slots in 0usize..3,
        chunk in 1usize..600,
    ) {
        let max_batch_tokens = n_slots + chunk;
        let mut scheduler = Scheduler::new(n_slots + idle_slots, n_slots, max_batch_tokens);
        let within = |(n_prefill, n_decode, from): (usize, _, Option<usize>)| (n_prefill, n_decode, from.map(|from| from % n_prefill));
        let jobs: Vec<_> = jobs.into_iter().map(within).collect();
        for (i, &(n_prefill, _, rows_from)) in jobs.iter().enumerate() {
            scheduler.submit(job(i, n_prefill, rows_from));
        }
        let mut fed = vec![0; jobs.len()];
        while !scheduler.is_idle() {
            scheduler.admit();
            let steps = scheduler.plan();
            prop_assert!(!steps.is_empty(), "a scheduler that is not idle has work");
            prop_assert!(steps.iter().map(|step| step.n_tokens).sum::<usize>() <= max_batch_tokens);
            let mut slots: Vec<_> = steps.iter().map(|step| step.slot).collect();
            slots.sort_unstable();
            slots.dedup();
            prop_assert_eq!(slots.len(), steps.len(), "a slot of its own for each");
            for step in &steps {
                let i = step.id.0 as usize;
                let (n_prefill, n_decode, rows_from) = jobs[i];
                prop_assert_eq!(step.start_pos, fed[i]);
                fed[i] += step.n_tokens;
                let ends_known = fed[i] >= n_prefill;
                let wants_rows = |position| rows_from.is_some_and(|from| (from..n_prefill).contains(&position));
                let positions = step.start_pos..fed[i];
                prop_assert!(positions.clone().all(|at| wants_rows(at) == wants_rows(step.start_pos)), "rows for all or none");
                let expected = match (wants_rows(step.start_pos), ends_known) {
                    (true, _) => Want::All,
                    (false, true) => Want::Last,
                    (false, false) => Want::None,
                };
                prop_assert_eq!(step.want, expected);
                scheduler.fed(step, &vec![TokenId(i as u32); step.n_tokens]);
                if fed[i] == n_prefill + n_decode {
                    prop_assert_eq!(scheduler.finish(step.id), Some(step.slot));
                } else if ends_known {
                    scheduler.sampled(step.id);
                }
            }
        }
        for (i, &(n_prefill, n_decode, _)) in jobs.iter().enumerate() {
            prop_assert_eq!(fed[i], n_prefill + n_decode);
        }
    }
}
