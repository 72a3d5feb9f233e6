//! Reuse of what the KV cache holds: which slot, how much of it, and that answers do not show it.

use llama_backend::Slot;
use proptest::prelude::*;

use super::super::prefixes::{Placement, Prefixes};
use super::*;

/// A prompt of so many tokens, of which none is EOS, that begins as all of its kind do.
fn prompt(kind: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| 3 + (i * 7 + i * i * kind) % 12).collect()
}

fn ids(tokens: &[u32]) -> Vec<TokenId> {
    tokens.iter().copied().map(TokenId).collect()
}

fn logged(prompt: &[u32], max_gen_len: usize) -> Request {
    Request { logprobs: true, ..request(prompt, max_gen_len) }
}

fn runs_of(stage: &Stage) -> Vec<Seen> {
    stage.seen.lock().unwrap().iter().flatten().cloned().collect()
}

/// One after the other.
fn ask(stage: &Stage, prompt: &[u32], max_gen_len: usize) -> Logged {
    let (tokens, end) = wait_logprobs(&stage.submit(vec![logged(prompt, max_gen_len)])[0]);
    end.unwrap();
    tokens
}

#[test]
fn a_conversation_goes_on_where_its_slot_ends() {
    let stage = Set { max_batch_size: 2, ..Set::default() }.build();
    let mut dialog = prompt(1, 20);
    for turn in 0..3 {
        let answer = ask(&stage, &dialog, 5);
        dialog.extend(answer.iter().map(|(id, _)| id));
        dialog.extend([4, 4, 5 + turn]);
    }
    // Of an answer of 5, the last token was never fed.
    let prefills: Vec<usize> =
        runs_of(&stage).iter().filter(|run| run.n_tokens > 1).map(|run| run.n_tokens).collect();
    assert_eq!(prefills, [20, 4, 4]);
    let stats = stage.engine.stats();
    assert_eq!((stats.prefilled_tokens, stats.cached_tokens), (28, 24 + 32));
    assert_eq!((stats.prefix_hits, stats.forks, stats.evictions, stats.running), (2, 0, 0, 0));
}

#[test]
fn a_prompt_asked_again_feeds_its_last_token() {
    let stage = Set::default().build();
    let first = ask(&stage, &prompt(1, 30), 3);
    assert_eq!(ask(&stage, &prompt(1, 30), 3), first);
    let again = &runs_of(&stage)[3];
    assert_eq!((again.start_pos, again.n_tokens), (29, 1));
}

#[test]
fn dialogs_with_one_system_prompt_prefill_it_once() {
    let system = prompt(1, 100);
    let dialog = |user: u32| [&system[..], &[user, user, 3]].concat();
    for together in [true, false] {
        let stage = Set { max_seq_len: 256, max_batch_size: 10, ..Set::default() }.build();
        let requests: Vec<_> = (0..10).map(|i| request(&dialog(3 + i), 4)).collect();
        if together {
            assert!(run(&stage, requests).iter().all(|(tokens, _)| *tokens == [4, 5, 6, 7]));
        } else {
            requests
                .into_iter()
                .for_each(|request| assert_eq!(run(&stage, vec![request])[0].0, [4, 5, 6, 7]));
        }
        let stats = stage.engine.stats();
        assert_eq!((stats.prefilled_tokens, stats.cached_tokens), (103 + 9 * 3, 900), "{together}");
        assert_eq!((stats.prefix_hits, stats.admitted), (9, 10));
        if together {
            assert_eq!(stats.forks, 9);
        }
    }
}

#[test]
fn who_waits_for_a_prefix_gets_a_slot_when_its_leader_is_cancelled() {
    let stage = Set { max_seq_len: 4096, max_batch_size: 2, gated: true, ..Set::default() }.build();
    let long = prompt(1, 3000);
    let submissions = stage.submit(vec![request(&long, 2), request(&long, 2)]);
    stage.go(1);
    let Some((_, Event::Started { .. })) = submissions[0].recv() else { panic!("the leader starts first") };
    drop(stage.gate.send(Permission::Go));
    let mut submissions = submissions.into_iter();
    drop(submissions.next());
    drop(stage.gate);
    assert_eq!(wait(&submissions.next().unwrap()).0.len(), 2);
}

#[test]
fn a_scored_prompt_is_fed_from_its_beginning() {
    let stage = Set::default().build();
    ask(&stage, &prompt(1, 20), 2);
    let request = Request { prompt_logprobs: Some(1), ..logged(&prompt(1, 20), 1) };
    let submission = &stage.submit(vec![request])[0];
    assert_eq!(scored(submission).logprobs.len(), 19);
    assert_eq!(stage.engine.stats().cached_tokens, 0);
}

/// Several answers to one question: it is prefilled once, and rows of logits are asked for where an answer is scored alone.
#[test]
fn a_continuation_is_scored_behind_a_prefix_that_is_kept() {
    let question = prompt(1, 100);
    let answers: Vec<Vec<u32>> = (0..6).map(|i| vec![3 + i; 4]).collect();
    let scored_from = |from| {
        move |answer: &Vec<u32>| Request {
            prompt_logprobs: Some(from),
            ..request(&[&prompt(1, 100)[..], answer].concat(), 0)
        }
    };
    let stage = Set { max_seq_len: 256, max_batch_size: 4, ..Set::default() }.build();
    let submissions = stage.submit(answers.iter().map(scored_from(100)).collect());
    let found: Vec<PromptLogprobs> = submissions.iter().map(scored).collect();
    assert_eq!(stage.engine.stats().prefilled_tokens, 99 + 6 * 4, "a row is that of the token before");
    let rows: usize = runs_of(&stage).iter().map(|run| run.want.n_rows(run.n_tokens)).sum();
    assert_eq!(rows, 6 * 4);
    let alone = Set { max_seq_len: 256, ..Set::default() }.build();
    for (answer, found) in answers.iter().zip(found) {
        let whole = scored(&alone.submit(vec![scored_from(1)(answer)])[0]);
        assert_eq!(found.logprobs, whole.logprobs[question.len() - 1..]);
    }
}

/// The slot that a failed pass lost may be that of a row which had no part in it: that row begins anew, and keeps what it knows.
#[test]
fn a_row_whose_slot_was_lost_is_scored_once() {
    let score = |prompt: &[u32], place| Request { place, prompt_logprobs: Some(1), ..request(prompt, 0) };
    let stage = Set { max_seq_len: 1024, max_batch_size: 3, gated: true, ..Set::default() }.build();
    let (first, second, third) = (prompt(1, 1000), prompt(2, 300), prompt(3, 150));
    let both = stage.engine.submit(call(vec![score(&first, 0), score(&second, 1)])).unwrap();
    while stage.seen.lock().unwrap().is_empty() {
        std::thread::yield_now();
    }
    // Joins the next pass, where it takes the rows that the second would have had.
    let shortest = &stage.submit(vec![score(&third, 0)])[0];
    stage.go(1);
    stage.gate.send(Permission::Lose(Slot(1))).unwrap();
    assert!(matches!(wait(shortest).1, Err(GenerateError::Backend(_))));
    drop(stage.gate);
    let runs: Vec<_> = stage.seen.lock().unwrap()[1].iter().map(|run| run.slot).collect();
    assert_eq!(runs, [Slot(2), Slot(0)]);
    let told = std::iter::from_fn(|| both.recv()).find_map(|(place, event)| match event {
        Event::PromptLogprobs(prompt) if place == 1 => Some(prompt.logprobs),
        _ => None,
    });
    let alone = Set { max_seq_len: 1024, ..Set::default() }.build();
    assert_eq!(told.unwrap(), scored(&alone.submit(vec![score(&second, 0)])[0]).logprobs);
}

#[test]
fn a_fork_that_fails_costs_the_prefix_and_no_more() {
    let stage = Set { max_batch_size: 2, forks_fail: true, ..Set::default() }.build();
    let (one, other) = ([prompt(1, 10), vec![3; 20]].concat(), [prompt(1, 10), vec![4; 20]].concat());
    ask(&stage, &one, 2);
    let answer = ask(&stage, &other, 2);
    let alone = Set::default().build();
    assert_eq!(answer, ask(&alone, &other, 2));
    let stats = stage.engine.stats();
    assert_eq!((stats.cached_tokens, stats.forks, stats.prefilled_tokens), (0, 0, 60));
}

#[test]
fn what_a_failed_pass_left_behind_is_not_built_upon() {
    let stage = Set { gated: true, ..Set::default() }.build();
    let submissions = stage.submit(vec![request(&prompt(1, 20), 3)]);
    stage.go(1);
    assert!(matches!(next(&submissions[0]), Event::Token(_)));
    stage.gate.send(Permission::Fail).unwrap();
    assert!(matches!(wait(&submissions[0]).1, Err(GenerateError::Backend(_))));
    stage.go(2);
    ask(&stage, &prompt(1, 20), 2);
    assert_eq!(stage.engine.stats().cached_tokens, 0);
}

#[test]
fn a_slot_is_chosen_by_what_it_holds_and_how_long_ago_it_was_used() {
    let mut prefixes = Prefixes::new(3);
    let mut use_once = |tokens: &[u32], len: usize| {
        let placement = prefixes.place(&ids(tokens)).unwrap();
        prefixes.extend(placement.slot, &ids(&tokens[placement.len..]));
        prefixes.give_back(placement.slot);
        assert_eq!(placement.len, len);
        placement
    };
    let slot = |slot, from: Option<usize>, len, evicts| Placement {
        slot: Slot(slot),
        from: from.map(Slot),
        len,
        evicts,
    };
    assert_eq!(use_once(&[1, 2, 3, 4], 0), slot(0, None, 0, false));
    assert_eq!(use_once(&[5, 5, 5, 5], 0), slot(1, None, 0, false));
    // Goes on: in the slot itself, though another is empty.
    assert_eq!(use_once(&[1, 2, 3, 4, 5, 6, 7, 8], 4), slot(0, None, 4, false));
    // Begins alike, and is another: into the empty slot, and what was there stays.
    assert_eq!(use_once(&[1, 2, 9, 9], 2), slot(2, Some(0), 2, false));
    // Into the least recently used one.
    assert_eq!(use_once(&[1, 2, 3, 9, 9], 3), slot(1, Some(0), 3, true));
    assert_eq!(use_once(&[7, 7], 0), slot(2, None, 0, true));
    assert_eq!(use_once(&[1, 2, 3, 4, 5, 6, 7, 8, 9], 8), slot(0, None, 8, false));
    // All busy: none.
    let busy: Vec<_> = (0..4).map(|i| prefixes.place(&ids(&[10 + i]))).collect();
    assert!(busy[..3].iter().all(Option::is_some) && busy[3].is_none());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    /// Prompts that begin alike, some cancelled, in any number of slots: each answer is that of the same prompt alone, to the bit
    /// of its logprobs, and in the end every slot is free.
    #[test]
    fn answers_do_not_show_what_was_reused(
        asked in prop::collection::vec((0u32..3, 1usize..60, 0usize..50, 0usize..5, any::<bool>()), 1..24),
        max_batch_size in 1usize..5,
        idle_slots in 0usize..3,
    ) {
        let stage = Set { max_seq_len: 128, max_batch_size, idle_slots, ..Set::default() }.build();
        let requests: Vec<Request> = asked
            .iter()
            .map(|&(kind, len, own, max_gen_len, _)| {
                logged(&[prompt(kind, len), prompt(4 + own as u32, own)].concat(), max_gen_len)
            })
            .collect();
        let submissions = stage.submit(requests.clone());
        for ((request, submission), (.., cancelled)) in requests.into_iter().zip(submissions).zip(&asked) {
            if *cancelled {
                continue; // dropped
            }
            let alone = Set { max_seq_len: 128, ..Set::default() }.build();
            let (expected, _) = wait_logprobs(&alone.submit(vec![request])[0]);
            let (found, end) = wait_logprobs(&submission);
            prop_assert!(end.is_ok());
            prop_assert_eq!(found, expected);
        }
        // Once this has ended, what was dropped before it was seen to have gone.
        run(&stage, vec![request(&[3], 1)]);
        let stats = stage.engine.stats();
        prop_assert_eq!((stats.running, stats.waiting), (0, 0));
    }
}
