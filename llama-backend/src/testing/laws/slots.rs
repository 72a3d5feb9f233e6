//! Laws about what slots hold: truncation, reuse, forks.

use super::super::rig::{Rig, joined};
use super::super::suite::{Checked, Suite};
use crate::{TokenId, Want};

/// Feeds `more` to a slot and checks that its rows are those of a fresh slot that was fed `held` and `more`.
fn continues(suite: &Suite<'_>, rig: &mut Rig, slot: usize, held: &[TokenId], more: &[TokenId]) -> Checked {
    let rows = rig.feed(slot, more, Want::All)?;
    let fresh = suite.fresh(&joined(&[held, more]))?;
    suite
        .is_same(&rows, &fresh[held.len()..])
        .map_err(|broken| broken.at(format_args!("slot {slot}, {} tokens after {}", more.len(), held.len())))
}

pub(super) fn truncate_and_refeed_equals_fresh(suite: &Suite<'_>) -> Checked {
    let (held, other) = (suite.text(30, 13), suite.text(31, 9));
    for keep in [0, 1, 5, 12, 13] {
        let mut rig = suite.small()?;
        rig.feed(1, &held, Want::None)?;
        rig.truncate(1, keep)?;
        // Less than was cut, then beyond it: what lay there before is in neither.
        continues(suite, &mut rig, 1, &held[..keep], &other[..3])?;
        let now = joined(&[&held[..keep], &other[..3]]);
        continues(suite, &mut rig, 1, &now, &other[3..])?;
    }
    // Twice in a row, the second time within what the first kept.
    let mut rig = suite.small()?;
    rig.feed(1, &held, Want::None)?;
    rig.truncate(1, 8)?;
    rig.truncate(1, 4)?;
    continues(suite, &mut rig, 1, &held[..4], &other)
}

pub(super) fn reused_slot_is_fresh(suite: &Suite<'_>) -> Checked {
    let mut rig = suite.small()?;
    for (seed, n) in [(32, 32), (33, 5), (34, 20), (35, 1), (36, 6)] {
        continues(suite, &mut rig, 2, &[], &suite.text(seed, n))?;
        rig.truncate(2, 0)?;
        // Freeing a free slot is no error and changes nothing.
        rig.truncate(2, 0)?;
    }
    Ok(())
}

pub(super) fn freed_slot_leaves_others_alone(suite: &Suite<'_>) -> Checked {
    let held: Vec<Vec<TokenId>> = (0..4).map(|slot| suite.text(40 + slot, 6 + slot as usize)).collect();
    let next = suite.text(44, 4);
    for freed in 0..4 {
        let mut rig = suite.small()?;
        for (slot, held) in held.iter().enumerate() {
            rig.feed(slot, held, Want::None)?;
        }
        rig.truncate(freed, 0)?;
        let mut others = (0..4).filter(|&slot| slot != freed);
        let check = |rig: &mut Rig, slot: Option<usize>| match slot {
            Some(slot) => continues(suite, rig, slot, &held[slot], &next)
                .map_err(|broken| broken.at(format_args!("after slot {freed} was freed"))),
            None => Ok(()),
        };
        // One while the slot is free, the rest after it is in use again.
        check(&mut rig, others.next())?;
        continues(suite, &mut rig, freed, &[], &suite.text(45, 17))?;
        check(&mut rig, others.next())?;
        check(&mut rig, others.next())?;
    }
    Ok(())
}

pub(super) fn fork_equals_copy(suite: &Suite<'_>) -> Checked {
    let (held, before, more) = (suite.text(50, 12), suite.text(51, 20), suite.text(52, 5));
    for (from, to) in [(0, 3), (2, 1)] {
        for len in [0, 1, 5, 11, 12] {
            let mut rig = suite.small()?;
            rig.feed(from, &held, Want::None)?;
            rig.feed(to, &before, Want::None)?;
            rig.fork(from, to, len)?;
            continues(suite, &mut rig, to, &held[..len], &more)
                .and_then(|()| continues(suite, &mut rig, from, &held, &more))
                .map_err(|broken| broken.at(format_args!("{len} of 12 positions from {from} to {to}")))?;
        }
    }
    Ok(())
}

pub(super) fn forks_diverge(suite: &Suite<'_>) -> Checked {
    let prefix = suite.text(53, 8);
    let mut rig = suite.small()?;
    rig.feed(0, &prefix, Want::None)?;
    rig.fork(0, 1, 8)?;
    rig.fork(1, 2, 6)?;
    rig.fork(0, 3, 8)?;
    // Each slot goes on with tokens of its own, in turn, so that each writes where the others would read.
    let mut held = [prefix.clone(), prefix.clone(), prefix[..6].to_vec(), prefix];
    for round in 0..2 {
        for (slot, held) in held.iter_mut().enumerate() {
            let more = suite.text(60 + 10 * round + slot as u64, 3);
            continues(suite, &mut rig, slot, held, &more)?;
            held.extend(more);
        }
    }
    // The origin goes, is used again, and is cut: the forks stay.
    rig.truncate(0, 0)?;
    continues(suite, &mut rig, 0, &[], &suite.text(80, 20))?;
    rig.truncate(3, 2)?;
    held[3].truncate(2);
    for (slot, held) in held.iter().enumerate().skip(1) {
        continues(suite, &mut rig, slot, held, &suite.text(81, 4))?;
    }
    Ok(())
}

pub(super) fn fork_onto_itself_truncates(suite: &Suite<'_>) -> Checked {
    let (held, more) = (suite.text(54, 10), suite.text(55, 6));
    for len in [0, 4, 10] {
        let mut rig = suite.small()?;
        rig.feed(2, &held, Want::None)?;
        rig.fork(2, 2, len)?;
        continues(suite, &mut rig, 2, &held[..len], &more)
            .map_err(|broken| broken.at(format_args!("{len} of 10 positions")))?;
    }
    Ok(())
}
