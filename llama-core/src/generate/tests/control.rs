//! How requests end before their time, and what full queues and failures do.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

use super::*;

/// Waits until something that is on its way has come; fails after a while.
fn until(what: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !what() {
        assert!(Instant::now() < deadline, "it never came");
        thread::yield_now();
    }
}

#[test]
fn a_failed_forward_fails_its_own_requests_and_frees_their_slots() {
    let stage = stage(64, 1, true);
    let submissions = stage.submit(vec![request(&[3], 3), request(&[7], 2)]);
    stage.gate.send(Permission::Fail).unwrap();
    drop(stage.gate);
    assert!(matches!(wait(&submissions[0]), (tokens, Err(GenerateError::Backend(_))) if tokens.is_empty()));
    assert_eq!(wait(&submissions[1]).0, [8, 9], "the one that waited goes on");
}

#[test]
fn a_lost_slot_of_nobodys_is_freed() {
    let stage = Set { max_batch_size: 2, gated: true, ..Set::default() }.build();
    stage.go(1);
    assert_eq!(wait(&stage.submit(vec![request(&[3; 20], 1)])[0]).0, [4]);
    stage.gate.send(Permission::Lose(Slot(0))).unwrap();
    assert!(wait(&stage.submit(vec![request(&[9; 20], 1)])[0]).1.is_err());
    stage.go(1);
    assert_eq!(wait(&stage.submit(vec![request(&[3; 20], 1)])[0]).0, [4]);
    assert_eq!(stage.engine.stats().cached_tokens, 0);
}

#[test]
fn a_cancelled_request_keeps_what_it_said_and_frees_its_slot() {
    let stage = stage(64, 1, true);
    let cancelled = stage.engine.submit(call(vec![request(&[3], 50)])).unwrap();
    let token = CancelToken::new();
    let by_token = Call { cancel: token.clone(), ..call(vec![request(&[5], 50)]) };
    let by_token = stage.engine.submit(by_token).unwrap();
    let last = stage.submit(vec![request(&[7], 2)]);
    stage.go(1);
    assert!(matches!(next(&cancelled), Event::Token(_)));
    cancelled.give_up(0);
    stage.go(2); // one for the request that was given up, if its pass had begun, and one or two for the next
    assert!(matches!(next(&by_token), Event::Token(NewToken { id: TokenId(6), .. })));
    token.cancel();
    drop(stage.gate);
    let (tokens, end) = wait(&by_token);
    assert!(tokens.len() <= 2 && matches!(end, Ok(FinishReason::Cancelled)), "{tokens:?} {end:?}");
    assert_eq!(wait(&last[0]).0, [8, 9]);
    assert!(stage.seen.lock().unwrap().len() <= 6);
}

#[test]
fn cancelling_is_noticed_within_a_chunk_of_a_prompt() {
    for waiting in [false, true] {
        let stage = stage(4096, 1, true);
        let token = CancelToken::new();
        let before = waiting.then(|| stage.submit(vec![request(&[5; 4000], 1)]));
        let long = Call { cancel: token.clone(), ..call(vec![request(&[3; 4000], 9)]) };
        let long = stage.engine.submit(long).unwrap();
        stage.go(1);
        until(|| !stage.seen.lock().unwrap().is_empty());
        token.cancel();
        stage.go(1);
        assert!(matches!(wait(&long), (tokens, Ok(FinishReason::Cancelled)) if tokens.is_empty()));
        // The pass that ran, and one that may have begun.
        let of_long = stage.seen.lock().unwrap().len();
        assert!(of_long <= 3, "{of_long}");
        drop(before);
        drop(stage.gate);
        assert_eq!(run(&stage.engine), [8, 9]);
    }

    fn run(engine: &Engine) -> Vec<u32> {
        wait(&engine.submit(call(vec![request(&[7], 2)])).unwrap()).0
    }
}

#[test]
fn a_listener_that_left_costs_nothing_more() {
    let stage = stage(64, 1, true);
    drop(stage.submit(vec![request(&[3], 50)]));
    drop(stage.submit(vec![request(&[4], 50)]));
    let Stage { gate, .. } = &stage;
    gate.send(Permission::Go).unwrap();
    gate.send(Permission::Go).unwrap();
    gate.send(Permission::Go).unwrap();
    assert_eq!(wait(&stage.submit(vec![request(&[7], 2)])[0]).0, [8, 9]);
    assert!(stage.seen.lock().unwrap().len() <= 3, "at most one step for those that were dropped");
}

#[test]
fn a_deadline_ends_what_waits_and_what_runs_and_keeps_what_was_said() {
    let stage = stage(64, 1, true);
    let timed = |prompt: &[u32], seconds| {
        let deadline = Some(Duration::from_secs(seconds));
        stage.engine.submit(Call { deadline, ..call(vec![request(prompt, 50)]) }).unwrap()
    };
    let (running, waiting, patient) = (timed(&[3], 10), timed(&[4], 5), timed(&[14], 1000));
    stage.go(1);
    assert!(matches!(next(&running), Event::Token(_)));
    *stage.time.lock().unwrap() = Duration::from_secs(9);
    stage.go(1);
    assert!(matches!(wait(&waiting), (tokens, Ok(FinishReason::Deadline)) if tokens.is_empty()));
    *stage.time.lock().unwrap() = Duration::from_secs(11);
    stage.go(1);
    let (tokens, end) = wait(&running);
    assert!(matches!(end, Ok(FinishReason::Deadline)), "{end:?}");
    assert!((1..=2).contains(&tokens.len()), "{tokens:?}");
    drop(stage.gate);
    assert!(matches!(wait(&patient), (tokens, Ok(FinishReason::Stop)) if tokens == [15, 0, 1]));
}

#[test]
fn times_run_from_submission() {
    let stage = stage(64, 1, true);
    let submissions = stage.submit(vec![request(&[3], 1), request(&[4], 2)]);
    until(|| !stage.seen.lock().unwrap().is_empty());
    *stage.time.lock().unwrap() = Duration::from_secs(3);
    stage.go(1);
    assert!(wait(&submissions[0]).1.is_ok());
    until(|| stage.seen.lock().unwrap().len() == 2);
    *stage.time.lock().unwrap() = Duration::from_secs(5);
    stage.go(2);
    let events: Vec<_> = std::iter::from_fn(|| submissions[1].recv()).map(|(_, event)| event).collect();
    let three = Duration::from_secs(3);
    assert!(matches!(&events[0], Event::Started { at, cached_tokens: 0 } if *at == three), "{events:?}");
    let five = Duration::from_secs(5);
    assert!(matches!(&events[1], Event::Token(token) if token.at == five), "{events:?}");
}

#[test]
fn a_full_queue_refuses_or_lets_wait_as_the_caller_says() {
    let stage = Set { max_queue_len: 2, gated: true, ..Set::default() }.build();
    let running = stage.submit(vec![request(&[3], 1)]);
    until(|| stage.engine.stats().running == 1);
    let waiting = stage.submit(vec![request(&[4], 1), request(&[5], 1)]);
    let refused = Call { when_full: WhenFull::Refuse, ..call(vec![request(&[6], 1)]) };
    let error = stage.engine.submit(refused).unwrap_err();
    assert!(matches!(error, GenerateError::QueueFull { waiting: 2, asked: 1, limit: 2 }), "{error}");
    assert!(error.is_queue_full() && !error.is_fatal());
    thread::scope(|scope| {
        // More than ever fit at once: they go in as there is room.
        let many = scope.spawn(|| super::run(&stage, (0..5).map(|_| request(&[7], 1)).collect()));
        until(|| stage.engine.callers() == 1);
        stage.go(8);
        assert!(many.join().unwrap().iter().all(|(tokens, end)| *tokens == [8] && end.is_ok()));
    });
    assert_eq!(wait(&running[0]).0, [4]);
    assert_eq!(waiting.iter().map(|waiting| wait(waiting).0).collect::<Vec<_>>(), [[5], [6]]);
    assert_eq!(stage.engine.stats().waiting, 0);
}

#[test]
fn who_waits_for_room_can_be_cancelled_and_runs_out_of_time() {
    let stage = Set { max_queue_len: 1, gated: true, ..Set::default() }.build();
    let running = stage.submit(vec![request(&[3], 1)]);
    until(|| stage.engine.stats().running == 1);
    let waiting = stage.submit(vec![request(&[4], 1)]);
    let token = CancelToken::new();
    thread::scope(|scope| {
        let cancelled = Call { cancel: token.clone(), ..call(vec![request(&[5], 1)]) };
        let cancelled = scope.spawn(|| stage.engine.submit(cancelled).unwrap());
        until(|| stage.engine.callers() == 1);
        token.cancel();
        assert!(matches!(wait(&cancelled.join().unwrap()).1, Ok(FinishReason::Cancelled)));
    });
    let hurried = Call { deadline: Some(Duration::ZERO), ..call(vec![request(&[5], 1)]) };
    assert!(matches!(wait(&stage.engine.submit(hurried).unwrap()).1, Ok(FinishReason::Deadline)));
    let late = Call { cancel: token, ..call(vec![request(&[5], 1)]) };
    assert!(matches!(wait(&stage.engine.submit(late).unwrap()).1, Ok(FinishReason::Cancelled)));
    drop(stage.gate);
    assert_eq!((wait(&running[0]).0, wait(&waiting[0]).0), (vec![4], vec![5]));
}

#[test]
fn after_a_panic_everybody_is_told_why() {
    let stage = Set { max_queue_len: 1, gated: true, ..Set::default() }.build();
    let running = stage.submit(vec![request(&[3], 3)]);
    until(|| stage.engine.stats().running == 1);
    let waiting = stage.submit(vec![request(&[4], 3)]);
    let told = |end: Result<FinishReason, GenerateError>| {
        let error = end.unwrap_err();
        assert!(
            matches!(&error, GenerateError::Panicked { message } if message == "told to panic"),
            "{error}"
        );
        assert!(error.is_fatal());
    };
    thread::scope(|scope| {
        let at_the_door = scope.spawn(|| stage.engine.submit(call(vec![request(&[5], 3)])));
        until(|| stage.engine.callers() == 1);
        stage.gate.send(Permission::Panic).unwrap();
        told(at_the_door.join().unwrap().map(|_| FinishReason::Stop));
    });
    told(wait(&running[0]).1);
    // It was not looked at any more: the handle says why.
    assert!(wait(&waiting[0]).1.is_err());
    told(Err(stage.engine.failure()));
    told(stage.engine.submit(call(vec![request(&[3], 3)])).map(|_| FinishReason::Stop));
}

#[test]
fn a_model_that_does_not_load_is_an_error() {
    let limits = Limits { max_batch_size: 1, max_queue_len: 1 };
    let error = Engine::start(limits, Arc::new(Instant::now), || Err(BackendError::EmptyBatch)).unwrap_err();
    assert!(matches!(error, crate::Error::Backend(BackendError::EmptyBatch)));
}

#[test]
fn who_does_not_read_holds_up_nobody() {
    let stage = Set { max_seq_len: 4096, max_batch_size: 2, ..Set::default() }.build();
    // Token 0 is followed by 1 and the end, but for a bias against it: as many tokens as the context holds.
    let mut endless = request(&[3], 4000);
    endless.sampling.logit_bias = [(EOS, -100.0)].into();
    let unread = stage.submit(vec![endless]);
    for _ in 0..50 {
        assert_eq!(run(&stage, vec![request(&[7], 2)])[0].0, [8, 9]);
    }
    let (tokens, end) = wait(&unread[0]);
    assert!(matches!(end, Ok(FinishReason::Length)) && tokens.len() == 4000, "{}", tokens.len());
}

/// Counts how often it was woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

#[test]
fn a_waker_is_woken_once_there_is_an_event_and_not_before() {
    let stage = stage(64, 1, true);
    let submission = &stage.submit(vec![request(&[3], 1)])[0];
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let context = Context::from_waker(&waker);
    let mut n_events = 0;
    loop {
        let before = woken.0.load(Ordering::Acquire);
        match submission.poll_recv(&context) {
            Poll::Ready(Some(_)) => n_events += 1,
            Poll::Ready(None) => break,
            Poll::Pending => {
                if n_events == 1 {
                    assert_eq!(woken.0.load(Ordering::Acquire), before, "nothing has happened");
                    stage.go(1);
                }
                until(|| woken.0.load(Ordering::Acquire) > before);
            }
        }
    }
    assert_eq!(n_events, 3, "started, a token, finished");
}

#[test]
fn a_panic_while_loading_is_told() {
    let limits = Limits { max_batch_size: 1, max_queue_len: 1 };
    let error = Engine::start(limits, Arc::new(Instant::now), || panic!("no such tensor core")).unwrap_err();
    assert!(
        matches!(&error, crate::Error::Generate(GenerateError::Panicked { message }) if message == "no such tensor core"),
        "{error}"
    );
}

/// Whoever is woken may hold the last handle, and is free to panic: neither hurts the engine's thread, or another caller.
#[test]
fn a_waker_may_drop_the_engine_or_panic() {
    struct Waking(Mutex<Option<Stage>>, Sender<()>);
    impl Wake for Waking {
        fn wake(self: Arc<Self>) {
            let stage = self.0.lock().unwrap().take();
            let found = stage.is_some();
            drop(stage);
            let _ = self.1.send(());
            assert!(!found, "a waker's panic");
        }
    }
    let stage = Set { gated: true, ..Set::default() }.build();
    let submission = stage.submit(vec![request(&[5], 3)]).remove(0);
    let gate = stage.gate.clone();
    let (woken, was_woken) = mpsc::channel();
    let waker = Waker::from(Arc::new(Waking(Mutex::new(Some(stage)), woken)));
    // What came before the first token is read.
    while submission.poll_recv(&Context::from_waker(&waker)).is_ready() {}
    let _ = gate.send(Permission::Go);
    was_woken.recv_timeout(PATIENCE).unwrap();
}
