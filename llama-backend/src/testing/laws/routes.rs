//! Laws that say which routes to the same logits there are: runs, chunks, batches, wants.

use super::super::random::Rng;
use super::super::rig::{Feed, Rig, Rows, same_bits};
use super::super::suite::{Broken, Checked, Suite};
use crate::{Batch, LoadParams, Logits, Run, Slot, TokenId, Want};

pub(super) fn prefill_equals_decodes(suite: &Suite<'_>) -> Checked {
    let sequence = suite.text(10, 13);
    let mut rig = suite.small()?;
    let prefilled = rig.feed(0, &sequence, Want::All)?;
    let mut decoded = Rows::new();
    for token in sequence.chunks(1) {
        decoded.extend(rig.feed(1, token, Want::Last)?);
    }
    suite.is_same(&decoded, &prefilled)
}

pub(super) fn any_chunking_gives_the_same_logits(suite: &Suite<'_>) -> Checked {
    let sequence = suite.text(11, 29);
    let whole = suite.fresh(&sequence)?;
    let mut rng = Rng::new(12);
    let mut rig = suite.small()?;
    for slot in (0..4).cycle().take(12) {
        rig.truncate(slot, 0)?;
        let mut rest = &sequence[..];
        let (mut sizes, mut rows) = (Vec::new(), Rows::new());
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(1 + rng.below(rest.len().min(9)));
            sizes.push(chunk.len());
            rows.extend(rig.feed(slot, chunk, Want::All)?);
            rest = after;
        }
        suite.is_same(&rows, &whole).map_err(|broken| broken.at(format_args!("chunks {sizes:?}")))?;
    }
    Ok(())
}

pub(super) fn ragged_batch_equals_each_alone(suite: &Suite<'_>) -> Checked {
    let sequences = ragged(suite);
    let mut rig = suite.small()?;
    // At the start of their slots, and again where every slot has a length of its own.
    for round in 0..2 {
        let feeds: Vec<Feed<'_>> =
            sequences.iter().enumerate().map(|(slot, s)| (slot, &s[..], Want::All)).collect();
        for (slot, rows) in rig.step(&feeds)?.iter().enumerate() {
            let sequence = sequences[slot].repeat(round + 1);
            let alone = suite.fresh(&sequence)?;
            suite
                .is_same(rows, &alone[alone.len() - rows.len()..])
                .map_err(|broken| broken.at(format_args!("slot {slot}, round {round}")))?;
        }
    }
    Ok(())
}

pub(super) fn permuted_runs_permute_rows(suite: &Suite<'_>) -> Checked {
    let sequences = ragged(suite);
    let feed = |slot: usize| -> Feed<'_> { (slot, &sequences[slot], Want::All) };
    let in_order = suite.small()?.step(&[0, 1, 2, 3].map(feed))?;
    for order in [[3, 2, 1, 0], [1, 0, 3, 2], [2, 3, 1, 0], [0, 3, 1, 2]] {
        let rows = suite.small()?.step(&order.map(feed))?;
        for (slot, rows) in order.into_iter().zip(rows) {
            suite
                .is_same(&rows, &in_order[slot])
                .map_err(|broken| broken.at(format_args!("slots in the order {order:?}, slot {slot}")))?;
        }
    }
    Ok(())
}

pub(super) fn last_is_the_last_row_of_all(suite: &Suite<'_>) -> Checked {
    for n in [1, 2, 9, 32] {
        let sequence = suite.text(13, n);
        let all = suite.fresh(&sequence)?;
        let last = suite.small()?.feed(0, &sequence, Want::Last)?;
        suite.is_same(&last, &all[n - 1..]).map_err(|broken| broken.at(format_args!("a run of {n}")))?;
    }
    Ok(())
}

pub(super) fn rows_follow_wants(suite: &Suite<'_>) -> Checked {
    let sequences = ragged(suite);
    let alone: Vec<Rows> = sequences.iter().map(|s| suite.fresh(s)).collect::<Checked<_>>()?;
    use Want::{All, Last, None};
    for wants in
        [[None, Last, All, None], [All, None, Last, Last], [Last, All, None, All], [None; 4], [Last; 4]]
    {
        let mut rig = suite.small()?;
        let feeds: Vec<Feed<'_>> = (0..4).map(|slot| (slot, &sequences[slot][..], wants[slot])).collect();
        for (slot, rows) in rig.step(&feeds)?.iter().enumerate() {
            let alone = &alone[slot];
            let expected = match wants[slot] {
                None => &[],
                Last => &alone[alone.len() - 1..],
                All => &alone[..],
            };
            suite
                .is_same(rows, expected)
                .map_err(|broken| broken.at(format_args!("wants {wants:?}, run {slot}")))?;
        }
        // A run that wanted nothing was computed all the same.
        let next = suite.text(14, 1);
        let found = rig.feed(0, &next, Last)?;
        let expected = suite.fresh(&[&sequences[0][..], &next].concat())?;
        suite
            .is_same(&found, &expected[expected.len() - 1..])
            .map_err(|broken| broken.at(format_args!("after wants {wants:?}")))?;
    }
    Ok(())
}

pub(super) fn mixed_prefill_and_decode_equal_apart(suite: &Suite<'_>) -> Checked {
    let (a, b, c) = (suite.text(15, 7), suite.text(16, 3), suite.text(17, 9));
    let next = suite.text(18, 5);
    // The decode stands between: an engine that computes its decodes apart must put their rows back.
    let feeds: [Feed<'_>; 3] = [(2, &c, Want::All), (0, &next[..1], Want::Last), (1, &next[1..], Want::All)];
    let started = || -> Checked<Rig> {
        let mut rig = suite.small()?;
        rig.step(&[(0, &a, Want::None), (1, &b, Want::None)])?;
        Ok(rig)
    };
    let together = started()?.step(&feeds)?;
    let mut rig = started()?;
    for (feed, together) in feeds.into_iter().zip(together) {
        let apart = rig.step(&[feed])?.concat();
        suite.is_same(&together, &apart).map_err(|broken| broken.at(format_args!("slot {}", feed.0)))?;
    }
    Ok(())
}

pub(super) fn same_input_same_bits(suite: &Suite<'_>) -> Checked {
    let sequences = ragged(suite);
    let script = |rig: &mut Rig| -> Checked<Rows> {
        let feeds: Vec<Feed<'_>> =
            sequences.iter().enumerate().map(|(slot, s)| (slot, &s[..], Want::All)).collect();
        let mut rows = rig.step(&feeds)?.concat();
        for slot in 0..4 {
            rows.extend(rig.feed(slot, &sequences[0], Want::Last)?);
            rig.truncate(slot, 0)?;
        }
        Ok(rows)
    };
    let mut rig = suite.small()?;
    let first = script(&mut rig)?;
    for (place, rows) in [
        ("the same model again", script(&mut rig)?),
        ("another model of the same weights", script(&mut suite.small()?)?),
    ] {
        same_bits(&rows, &first).map_err(|broken| broken.at(place))?;
    }
    Ok(())
}

pub(super) fn any_thread_count_gives_the_same_logits(suite: &Suite<'_>) -> Checked {
    let sequences = ragged(suite);
    let with = |threads| -> Checked<Rows> {
        let mut params = LoadParams::new(32, 4);
        params.threads = threads;
        let mut rig = suite.load(&suite.weights(1), &params)?;
        let feeds: Vec<Feed<'_>> =
            sequences.iter().enumerate().map(|(slot, s)| (slot, &s[..], Want::All)).collect();
        let mut rows = rig.step(&feeds)?.concat();
        rows.extend(rig.feed(1, &sequences[2], Want::Last)?);
        Ok(rows)
    };
    let expected = with(None)?;
    // More threads than rows, heads or processors, too.
    for threads in [1, 2, 3, 5, 16] {
        suite
            .is_same(&with(Some(threads))?, &expected)
            .map_err(|broken| broken.at(format_args!("{threads} threads")))?;
    }
    Ok(())
}

pub(super) fn logits_buffer_is_overwritten(suite: &Suite<'_>) -> Checked {
    let sequence = suite.text(19, 5);
    let expected = suite.fresh(&sequence)?;
    let n_logits = expected.concat().len();
    for (n_rows, vocab_size) in [(0, 1), (1, 3), (5, 61), (1, n_logits), (40, 61), (3, 1000)] {
        let mut logits = Logits::new();
        logits.reset(n_rows, vocab_size).fill(f32::NAN);
        let runs = [Run { slot: Slot(0), start_pos: 0, tokens: &sequence, want: Want::All }];
        suite.small()?.model.forward(&Batch::new(&runs), &mut logits)?;
        let rows: Rows = logits.rows().map(<[f32]>::to_vec).collect();
        suite
            .is_same(&rows, &expected)
            .map_err(|broken| broken.at(format_args!("a buffer of [{n_rows}, {vocab_size}]")))?;
    }
    // Nothing wanted leaves nothing, not the rows of the step before.
    let mut logits = Logits::new();
    logits.reset(2, 61).fill(1.0);
    let runs = [Run { slot: Slot(0), start_pos: 0, tokens: &sequence, want: Want::None }];
    suite.small()?.model.forward(&Batch::new(&runs), &mut logits)?;
    match logits.n_rows() {
        0 => Ok(()),
        n => Err(Broken(format!("{n} rows after a batch that wants none"))),
    }
}

/// Four sequences of different lengths, one of them a single token.
fn ragged(suite: &Suite<'_>) -> [Vec<TokenId>; 4] {
    [suite.text(20, 4), suite.text(21, 13), suite.text(22, 1), suite.text(23, 8)]
}
