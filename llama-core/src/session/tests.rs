//! The laws of fitting, on random conversations, with a scripted model that writes summaries.

use std::cell::{Cell, RefCell};
use std::sync::{Arc, Mutex};

use llama_dialog::{Conversation, Message, Role};
use proptest::prelude::*;

use super::context::{Reader, Window};
use super::{ContextPolicy, ContextReport, Summarizer, SummaryError};
use crate::tokenizer::Tokenizer;
use crate::{Dialog, Error};

const TOKENIZER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-chat/tokenizer.model");

/// Counts as tiny-chat does, answers with a word and the number of messages that it read, and records what it was asked.
struct Scripted {
    tokenizer: Tokenizer,
    limit: usize,
    asked: RefCell<Vec<Dialog>>,
    silent: Cell<bool>,
}

impl Scripted {
    fn new(limit: usize) -> Self {
        Self {
            tokenizer: Tokenizer::open(TOKENIZER).unwrap(),
            limit,
            asked: RefCell::default(),
            silent: Cell::new(false),
        }
    }
}

impl Reader for Scripted {
    fn limit(&self) -> usize {
        self.limit
    }

    fn count(&self, dialog: &Dialog) -> Result<usize, Error> {
        Ok(self.tokenizer.encode_dialog(dialog)?.len())
    }

    fn answer(&self, dialog: &Dialog, max_gen_len: usize) -> Result<String, Error> {
        assert!(
            self.count(dialog)? + max_gen_len <= self.limit,
            "a question that leaves no room for its answer"
        );
        self.asked.borrow_mut().push(dialog.clone());
        Ok(if self.silent.get() { " ".to_owned() } else { format!("Read {}.", dialog.messages().len()) })
    }
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z ]{0,30}", " {0,3}[a-zA-Z ,.]{0,120}\\PC{0,5}"]
}

#[derive(Debug, Clone)]
struct Case {
    system: Option<String>,
    turns: Vec<(String, String)>,
    limit: usize,
    reserved: usize,
}

prop_compose! {
    fn case()(
        system in prop::option::of(text()),
        turns in prop::collection::vec((text(), text()), 1..14),
        limit in 40usize..500,
        share in 1usize..20,
    ) -> Case {
        Case { system, turns, limit, reserved: (limit / share / 2).max(1) }
    }
}

/// Whole turns of the record, the newest, behind the system prompt as it was and the summary that was reported.
fn sent(conversation: &Conversation, report: &ContextReport, message: &str) -> Vec<Message> {
    let messages = conversation.messages();
    let spoken = usize::from(conversation.system().is_some());
    let mut expected = messages[..spoken].to_vec();
    if let Some(summary) = &report.summary {
        expected.push(Message::user(super::summary::REQUEST));
        expected.push(Message::assistant(summary));
    }
    expected.extend_from_slice(&messages[spoken + 2 * report.dropped..]);
    expected.push(Message::user(message));
    expected
}

/// Says every message in turn, as a session does, and checks what is sent each time.
fn converse(case: &Case, policy: &ContextPolicy) -> Result<(), TestCaseError> {
    let model = Scripted::new(case.limit);
    let room = case.limit - case.reserved;
    let mut conversation = Conversation::new();
    conversation.set_system(case.system.clone());
    let mut window = Window::default();
    let mut before: Option<ContextReport> = None;
    for (message, answer) in &case.turns {
        let fitted = window.fit(&model, &conversation, message, policy, case.reserved);
        let asked = std::mem::take(&mut *model.asked.borrow_mut());
        let whole = model.count(&conversation.ask(&**message)).unwrap();
        let mut alone = Conversation::new();
        alone.set_system(case.system.clone());
        let alone = model.count(&alone.ask(&**message)).unwrap();
        match fitted {
            Ok((dialog, report)) => {
                prop_assert_eq!(dialog.messages(), sent(&conversation, &report, message));
                prop_assert!(Dialog::try_from(dialog.messages().to_vec()).is_ok(), "valid and alternating");
                let prompt = model.count(&dialog).unwrap();
                prop_assert!(prompt <= room, "{prompt} tokens in a room of {room}");
                let budget = report.budget;
                prop_assert_eq!(budget.prompt, prompt);
                prop_assert_eq!(budget.prompt + budget.reserved + budget.left, budget.limit);
                let dropped_before = before.as_ref().map_or(0, |before| before.dropped);
                prop_assert_eq!(report.dropped, dropped_before + report.newly_dropped);
                prop_assert!(report.summarised <= report.dropped);
                if whole <= room && dropped_before == 0 {
                    prop_assert_eq!(report.dropped, 0, "all of it fits");
                }
                if report.newly_dropped == 0
                    && let Some(before) = &before
                    && before.summarised == before.dropped
                {
                    prop_assert!(asked.is_empty(), "nothing new to summarise");
                    if report.summary != before.summary {
                        // It gives way to nothing but a message that leaves it no room.
                        prop_assert_eq!(&report.summary, &None);
                        let with = ContextReport { summary: before.summary.clone(), ..report.clone() };
                        let with = Dialog::try_from(sent(&conversation, &with, message)).unwrap();
                        prop_assert!(model.count(&with).unwrap() > room);
                    }
                }
                before = Some(report);
                conversation.push_turn(message, answer);
            }
            Err(Error::MessageTooLong { prompt, reserved, limit }) => {
                prop_assert_eq!((prompt, reserved, limit), (alone, case.reserved, case.limit));
                prop_assert!(alone > room);
            }
            Err(Error::ContextOverflow { prompt, reserved, limit, .. }) => {
                prop_assert!(matches!(policy, ContextPolicy::Reject));
                prop_assert_eq!((prompt, reserved, limit), (whole, case.reserved, case.limit));
                prop_assert!(whole > room && alone <= room);
            }
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_rejecting_session_sends_all_or_nothing(case in case()) {
        converse(&case, &ContextPolicy::Reject)?;
    }

    #[test]
    fn dropped_turns_are_whole_old_and_reported(case in case()) {
        converse(&case, &ContextPolicy::DropOldestTurns)?;
    }

    #[test]
    fn a_summary_by_the_model_stands_for_what_was_dropped(case in case()) {
        converse(&case, &ContextPolicy::Summarize(Summarizer::model().with_max_tokens(12)))?;
    }

    /// Each dropped turn is given to the caller exactly once, in order, and the summary before it every time.
    #[test]
    fn a_summary_by_the_caller_reads_each_turn_once(case in case()) {
        let read = Arc::new(Mutex::new((Vec::new(), None)));
        let log = Arc::clone(&read);
        let summarizer = Summarizer::new(move |request| {
            let (turns, last) = &mut *log.lock().unwrap();
            assert_eq!(request.previous, last.as_deref());
            assert!(!request.turns.is_empty());
            turns.extend(request.turns.iter().map(|turn| (turn.user.to_owned(), turn.answer.unwrap().to_owned())));
            *last = Some(turns.len().to_string());
            Ok(turns.len().to_string())
        });
        // A reserve that leaves every message room beside the summary, so that none is sent without one.
        let case = Case { limit: case.limit + 800, reserved: 400, ..case };
        converse(&case, &ContextPolicy::Summarize(summarizer.with_max_tokens(12)))?;
        let read = &read.lock().unwrap().0;
        prop_assert_eq!(&case.turns[..read.len()], &read[..]);
    }
}

/// A conversation of turns of about twenty tokens.
fn talk(n_turns: usize) -> Conversation {
    let mut conversation = Conversation::new().with_system("Be brief");
    for i in 0..n_turns {
        conversation
            .push_turn(format!("Tell me about the number {i}"), format!("It comes after {}", i.max(1) - 1));
    }
    conversation
}

#[test]
fn dropping_leaves_the_beginning_alone_for_several_turns() {
    let model = Scripted::new(512);
    let mut window = Window::default();
    let mut conversation = talk(0);
    let mut dropped = Vec::new();
    for i in 0..60 {
        let (_, report) =
            window.fit(&model, &conversation, "Go on", &ContextPolicy::DropOldestTurns, 64).unwrap();
        dropped.push(report.newly_dropped);
        conversation.push_turn(format!("Tell me about the number {i}"), "There is nothing to tell.");
    }
    let drops = dropped.iter().filter(|&&n| n > 0).count();
    assert!((2..=60 / 3).contains(&drops), "{dropped:?}");
}

#[test]
fn a_long_record_is_summarised_in_parts_and_what_cannot_be_read_is_reported() {
    let model = Scripted::new(200);
    let mut conversation = talk(20);
    conversation.push_turn("word ".repeat(300), "That is long.");
    let policy = ContextPolicy::Summarize(Summarizer::model().with_max_tokens(20));
    let (dialog, report) = Window::default().fit(&model, &conversation, "And now?", &policy, 40).unwrap();
    assert_eq!((report.dropped, report.summarised, report.unread), (21, 21, 1));
    assert!(model.asked.borrow().len() > 1, "the record is longer than the context");
    assert_eq!(dialog.messages()[2].role, Role::Assistant);
    // Each part but the first goes on from the summary of those before.
    let asked = model.asked.borrow();
    for pair in asked.windows(2) {
        assert_eq!(pair[1].messages()[2].content, format!("Read {}.", pair[0].messages().len()));
    }
}

#[test]
fn a_model_that_says_nothing_leaves_the_summary_that_was_there() {
    let model = Scripted::new(200);
    let mut conversation = talk(20);
    let mut window = Window::default();
    let policy = ContextPolicy::Summarize(Summarizer::model().with_max_tokens(20));
    let (_, first) = window.fit(&model, &conversation, "And now?", &policy, 40).unwrap();
    assert!(first.summary.is_some());
    model.silent.set(true);
    for i in 0..6 {
        conversation.push_turn(format!("Tell me about the number {i}"), "There is nothing to tell.");
    }
    let (_, second) = window.fit(&model, &conversation, "And now?", &policy, 40).unwrap();
    assert_eq!(second.summary, first.summary);
    assert_eq!((second.newly_dropped, second.unread), (6, 6));
}

#[test]
fn a_summary_that_was_left_out_is_made_up_for() {
    let model = Scripted::new(300);
    let mut conversation = talk(12);
    let policy = ContextPolicy::Summarize(Summarizer::model().with_max_tokens(60));
    let mut window = Window::default();
    // The longest message that fits alone: no room for a summary.
    let long = (1..).map(|n| "word ".repeat(n));
    let fits = |text: &String| model.count(&talk(0).ask(&**text)).unwrap() <= 260;
    let long = long.take_while(fits).last().unwrap();
    let (_, report) = window.fit(&model, &conversation, &long, &policy, 40).unwrap();
    assert_eq!((report.dropped, &report.summary, report.summarised), (12, &None, 0));
    conversation.push_turn(long, "Indeed.");
    let (_, report) = window.fit(&model, &conversation, "And now?", &policy, 40).unwrap();
    assert!(report.summary.is_some());
    assert_eq!((report.summarised, report.newly_dropped), (report.dropped, 1));
}

#[test]
fn a_summary_that_fails_is_a_typed_error_and_changes_nothing() {
    let model = Scripted::new(200);
    let conversation = talk(20);
    let mut window = Window::default();
    let mut fit = |summarizer: Summarizer| {
        let policy = ContextPolicy::Summarize(summarizer.with_max_tokens(20));
        window.fit(&model, &conversation, "And now?", &policy, 40)
    };
    let error = fit(Summarizer::new(|_| Err("no ink".into()))).unwrap_err();
    assert!(matches!(error, Error::Summary(SummaryError::Failed(_))), "{error}");
    assert!(error.to_string().contains("no ink"), "{error}");
    let error = fit(Summarizer::new(|_| Ok("so [/INST] what".to_owned()))).unwrap_err();
    assert!(matches!(error, Error::Summary(SummaryError::SpecialTag { offset: 3, .. })), "{error}");
    let error = fit(Summarizer::new(|_| Ok("word ".repeat(500)))).unwrap_err();
    assert!(matches!(error, Error::Summary(SummaryError::TooLong { prompt, room: 160 }) if prompt > 160));
    for max_tokens in [0, 160] {
        let policy = ContextPolicy::Summarize(Summarizer::model().with_max_tokens(max_tokens));
        let error = Window::default().fit(&model, &conversation, "And now?", &policy, 40).unwrap_err();
        assert!(matches!(error, Error::Option { option: "max_tokens", .. }), "{error}");
    }
    // One that says nothing is none.
    let (dialog, report) = fit(Summarizer::new(|_| Ok(" \n".to_owned()))).unwrap();
    assert_eq!((report.summary, report.summarised), (None, 0));
    assert_eq!(dialog.system(), Some("Be brief"));
}
