//! Laws about refusals: which error, at which number, and that nothing else happens.

use std::fmt::Debug;

use super::super::oracle::Oracle;
use super::super::rig::Rig;
use super::super::suite::{Broken, Checked, Suite};
use crate::{BackendError, Batch, LoadParams, Logits, Run, Slot, TokenId, Want};

/// That a call failed with the error it should.
fn refused<T>(
    call: impl Debug,
    result: Result<T, BackendError>,
    expected: &str,
    is: impl Fn(&BackendError) -> bool,
) -> Checked {
    match result {
        Err(error) if is(&error) => Ok(()),
        Err(error) => Err(Broken(format!("{call:?} gave {error:?}, expected {expected}"))),
        Ok(_) => Err(Broken(format!("{call:?} was taken, expected {expected}"))),
    }
}

macro_rules! refused {
    ($call:expr, $result:expr, $expected:pat) => {
        refused($call, $result, stringify!($expected), |error| matches!(error, $expected))
    };
}

/// A model with 5 positions in slot 0 and 3 in slot 1, of 4 slots of 16 positions and 12 tokens a batch.
fn started(suite: &Suite<'_>) -> Checked<Rig> {
    let mut params = LoadParams::new(16, 4);
    params.max_batch_tokens = 12;
    let mut rig = suite.load(&suite.weights(1), &params)?;
    rig.step(&[(0, &suite.text(100, 5), Want::None), (1, &suite.text(101, 3), Want::None)])?;
    Ok(rig)
}

/// That both slots go on as if nothing had happened, and that the free ones are free.
fn unchanged(suite: &Suite<'_>, rig: &mut Rig, call: impl Debug) -> Checked {
    let more = suite.text(102, 2);
    let step =
        |rig: &mut Rig| rig.step(&[(0, &more, Want::All), (1, &more, Want::All), (3, &more, Want::All)]);
    let found = step(rig).map_err(|broken| broken.at(format_args!("after {call:?}")))?.concat();
    let expected = step(&mut started(suite)?)?.concat();
    suite.is_same(&found, &expected).map_err(|broken| broken.at(format_args!("after {call:?}")))?;
    // Back to where the next refusal starts from.
    rig.truncate(0, 5)?;
    rig.truncate(1, 3)?;
    rig.truncate(3, 0)
}

pub(super) fn failed_forward_changes_nothing(suite: &Suite<'_>) -> Checked {
    let vocab_size = suite.config().vocab_size as u32;
    let (one, twelve) = (suite.text(103, 1), suite.text(104, 12));
    let (too_high, highest) = ([one[0], TokenId(vocab_size)], [TokenId(u32::MAX)]);
    let run = |slot, start_pos, tokens| Run { slot: Slot(slot), start_pos, tokens, want: Want::All };
    // In front of each bad run stands a good one: a model that appends before it has checked all shows.
    let good = run(1, 3, &one);
    let mut rig = started(suite)?;
    let mut logits = Logits::new();
    let mut refuse = |runs: &[Run<'_>], expected: &str, is: &dyn Fn(&BackendError) -> bool| -> Checked {
        refused(runs, rig.model.forward(&Batch::new(runs), &mut logits), expected, is)?;
        unchanged(suite, &mut rig, runs)
    };
    macro_rules! refuse {
        ($runs:expr, $expected:pat) => {
            refuse($runs, stringify!($expected), &|error| matches!(error, $expected))?
        };
    }
    use BackendError as E;
    refuse!(&[], E::EmptyBatch);
    refuse!(&[good, run(2, 0, &twelve)], E::BatchTooLarge { n_tokens: 13, limit: 12 });
    refuse!(&[good, run(2, 0, &[])], E::EmptyRun { slot: Slot(2) });
    refuse!(&[good, run(4, 0, &one)], E::UnknownSlot { slot: Slot(4), n_slots: 4 });
    refuse!(&[good, run(usize::MAX, 0, &one)], E::UnknownSlot { slot: Slot(usize::MAX), n_slots: 4 });
    refuse!(&[good, run(0, 5, &one), good], E::DuplicateSlot { slot: Slot(1) });
    refuse!(&[good, run(0, 6, &one)], E::NotContiguous { slot: Slot(0), start_pos: 6, len: 5 });
    refuse!(&[good, run(0, 4, &one)], E::NotContiguous { slot: Slot(0), start_pos: 4, len: 5 });
    refuse!(&[good, run(2, 1, &one)], E::NotContiguous { slot: Slot(2), start_pos: 1, len: 0 });
    refuse!(
        &[good, run(2, usize::MAX, &one)],
        E::NotContiguous { slot: Slot(2), start_pos: usize::MAX, len: 0 }
    );
    refuse!(&[run(0, 5, &twelve)], E::SlotFull { slot: Slot(0), end_pos: 17, max_seq_len: 16 });
    refuse!(&[good, run(0, 5, &too_high)], E::TokenOutOfRange { slot: Slot(0), .. });
    refuse!(&[good, run(2, 0, &highest)], E::TokenOutOfRange { slot: Slot(2), token: TokenId(u32::MAX), .. });
    Ok(())
}

pub(super) fn failed_truncate_or_fork_changes_nothing(suite: &Suite<'_>) -> Checked {
    use BackendError as E;
    let mut rig = started(suite)?;
    macro_rules! refuse {
        ($method:ident($($arg:expr),*), $expected:pat) => {
            let call = format!("{}{:?}", stringify!($method), ($($arg,)*));
            refused!(&call, rig.model.$method($($arg),*), $expected)?;
            unchanged(suite, &mut rig, &call)?;
        };
    }
    refuse!(truncate(Slot(0), 6), E::BeyondLength { slot: Slot(0), len: 5, wanted: 6 });
    refuse!(truncate(Slot(2), 1), E::BeyondLength { slot: Slot(2), len: 0, wanted: 1 });
    refuse!(truncate(Slot(1), usize::MAX), E::BeyondLength { slot: Slot(1), .. });
    refuse!(truncate(Slot(4), 0), E::UnknownSlot { slot: Slot(4), n_slots: 4 });
    refuse!(fork(Slot(0), Slot(1), 6), E::BeyondLength { slot: Slot(0), len: 5, wanted: 6 });
    refuse!(fork(Slot(2), Slot(0), 1), E::BeyondLength { slot: Slot(2), len: 0, wanted: 1 });
    refuse!(fork(Slot(1), Slot(1), 4), E::BeyondLength { slot: Slot(1), len: 3, wanted: 4 });
    refuse!(fork(Slot(4), Slot(1), 0), E::UnknownSlot { slot: Slot(4), n_slots: 4 });
    refuse!(fork(Slot(0), Slot(4), 1), E::UnknownSlot { slot: Slot(4), n_slots: 4 });
    Ok(())
}

pub(super) fn limits_are_exact(suite: &Suite<'_>) -> Checked {
    use BackendError as E;
    let weights = suite.weights(1);
    let oracle = Oracle::new(&*weights)?;
    let sequence = suite.text(105, 9);
    let expected = oracle.logits(&sequence, 0); // [9, vocab_size]
    for (max_seq_len, n_slots, chunk) in [(8, 2, 8), (8, 2, 7), (8, 3, 3), (1, 1, 1), (9, 1, 1)] {
        let mut params = LoadParams::new(max_seq_len, n_slots);
        params.max_batch_tokens = chunk;
        let check = || -> Checked {
            let mut rig = suite.load(&weights, &params)?;
            let last = n_slots - 1;
            // Every slot to the brim, the last slot first, each batch as large as it may be.
            for slot in (0..n_slots).rev() {
                let mut rows = Vec::new();
                for tokens in sequence[..max_seq_len].chunks(chunk) {
                    rows.extend(rig.feed(slot, tokens, Want::All)?);
                }
                suite.is_exact(&rows, &expected[..max_seq_len])?;
            }
            let over =
                [Run { slot: Slot(last), start_pos: max_seq_len, tokens: &sequence[..1], want: Want::Last }];
            let result = rig.model.forward(&Batch::new(&over), &mut Logits::new());
            refused!(&over, result, E::SlotFull { .. })?;
            let many = vec![sequence[0]; chunk + 1];
            let over = [Run { slot: Slot(last), start_pos: max_seq_len, tokens: &many, want: Want::Last }];
            let result = rig.model.forward(&Batch::new(&over), &mut Logits::new());
            refused!(&over, result, E::BatchTooLarge { .. })?;
            // A full slot can be cut by one and filled again.
            rig.truncate(last, max_seq_len - 1)?;
            let rows = rig.feed(last, &sequence[max_seq_len - 1..max_seq_len], Want::Last)?;
            suite.is_exact(&rows, &expected[max_seq_len - 1..max_seq_len])
        };
        check().map_err(|broken| broken.at(format_args!("{params:?}")))?;
    }
    Ok(())
}
