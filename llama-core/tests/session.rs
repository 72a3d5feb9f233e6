//! A session answers as the whole dialog asked afresh does, id for id, and loses nothing: on tiny-chat.
#![cfg(feature = "candle")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::path::Path;
use std::sync::OnceLock;

use llama_core::{
    CancelToken, ChatOptions, ContextOptions, ContextPolicy, Conversation, Dialog, DialogError, Error,
    FinishReason, LeftOutReason, Llama, REFUSAL, Session, StreamEvent, Summarizer, SummaryError,
};

/// tiny-chat, loaded once.
fn llama() -> &'static Llama {
    static LLAMA: OnceLock<Llama> = OnceLock::new();
    LLAMA.get_or_init(|| {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-chat");
        Llama::builder().checkpoint(&model).max_seq_len(512).build().unwrap()
    })
}

fn options() -> ChatOptions {
    ChatOptions { temperature: 0.8, logprobs: true, max_gen_len: Some(60), ..Default::default() }
}

fn session(system: Option<&str>) -> Session {
    llama().session(system).with_options(options())
}

const MESSAGES: [&str; 5] = [
    "what is the recipe of mayonnaise?",
    "  Write a brief birthday message to John \n",
    "hello",
    "I am going to Paris, what should I see?",
    "What is so great about #1?",
];

/// The stream's text, and how it ended.
fn read(session: &mut Session, message: &str) -> (String, FinishReason) {
    let mut text = String::new();
    let mut reason = None;
    for event in session.send(message).unwrap() {
        match event.unwrap() {
            StreamEvent::Text(piece) => text.push_str(&piece),
            StreamEvent::Finished { finish_reason, .. } => reason = Some(finish_reason),
            _ => {}
        }
    }
    (text, reason.unwrap())
}

#[test]
fn a_session_answers_as_the_whole_dialog_asked_afresh() {
    for system in [None, Some("Always answer with Haiku")] {
        let (mut asked, mut streamed) = (session(system), session(system));
        let mut dialog: Option<(Dialog, String)> = None;
        for message in MESSAGES {
            let whole = match dialog.take() {
                Some((dialog, answer)) => dialog.then(answer, message),
                None if system.is_some() => Dialog::new(message).with_system(system.unwrap()),
                None => Dialog::new(message),
            };
            let afresh = llama().chat_completion(std::slice::from_ref(&whole), &options()).unwrap().remove(0);
            let answer = asked.ask(message).unwrap();
            // Text, token for token, logprobs to the bit, and the prompt's length.
            assert_eq!(answer.prediction, afresh);
            assert_eq!(answer.context.budget.prompt, afresh.usage.prompt_tokens);
            let text = afresh.generation.content;
            assert_eq!(read(&mut streamed, message), (text.clone(), afresh.finish_reason));
            dialog = Some((whole, text));
        }
        let (last, answer) = dialog.unwrap();
        let all = last.then(answer, "").split().0;
        assert_eq!((asked.conversation(), streamed.conversation()), (&all, &all));
    }
}

#[test]
fn a_session_goes_on_from_its_json() {
    let mut first = session(Some("Answer with emoji"));
    first.ask(MESSAGES[0]).unwrap();
    let json = first.to_json();
    let mut second = llama().session_from_json(&json).unwrap().with_options(options());
    assert_eq!(second.conversation(), first.conversation());
    assert_eq!(second.to_json(), json);
    assert_eq!(second.ask(MESSAGES[1]).unwrap(), first.ask(MESSAGES[1]).unwrap());
    let empty = llama().session(None).to_json();
    assert_eq!(*llama().session_from_json(&empty).unwrap().conversation(), Conversation::new());
}

#[test]
fn what_is_no_conversation_is_an_error_that_names_the_message() {
    let error = |json: &str| llama().session_from_json(json).unwrap_err();
    for json in ["", "[", "{}", "[1]", r#"[{"role": "user"}]"#, r#"[{"role": "user", "content": 1}]"#] {
        let error = error(json);
        assert!(matches!(error, Error::Json(_)), "{json}: {error}");
    }
    let user = r#"{"role": "user", "content": "a"}"#;
    assert!(matches!(error(&format!("[{user}]")), Error::Dialog(DialogError::Unanswered { index: 0 })));
    let error = error(&format!("[{user}, {user}]"));
    assert_eq!(error.to_string(), "message 1 is from user, expected assistant");
}

#[test]
fn a_stream_that_is_dropped_leaves_its_texts_aside_until_they_are_kept() {
    let mut session = session(None);
    assert!(!session.keep());
    let mut stream = session.send(MESSAGES[0]).unwrap();
    while stream.answer().len() < 10 {
        stream.next().unwrap().unwrap();
    }
    let begun = stream.answer().to_owned();
    drop(stream);
    assert_eq!(session.conversation().turns().len(), 0);
    let left = session.left_out().unwrap();
    assert_eq!((&*left.message, &*left.answer), (MESSAGES[0], &*begun));
    assert_eq!(left.reason, LeftOutReason::Interrupted);
    assert!(session.keep() && !session.keep());
    let mut expected = Conversation::new();
    expected.push_turn(MESSAGES[0], &begun);
    assert_eq!((session.conversation(), session.left_out()), (&expected, None));

    // Not kept: the next message is the first.
    session.reset();
    drop(session.send(MESSAGES[0]).unwrap());
    assert!(!session.keep(), "an answer that was not begun");
    let answer = session.ask(MESSAGES[1]).unwrap();
    assert_eq!(session.left_out(), None);
    assert_eq!(answer.prediction, session_of_one(MESSAGES[1]));
}

#[test]
fn an_answer_that_was_cancelled_or_out_of_time_is_set_aside_as_far_as_it_came() {
    for stop in [true, false] {
        let mut session = session(None);
        let (message, text) = ("Write a long story.", &mut String::new());
        // One word without end: what the model would say by itself may hold a special tag, sooner or later.
        let word = llama().tokenizer().encode("haiku")[0];
        let endless = [(llama().tokenizer().eos_id(), -100.0), (word, 100.0)].into();
        let options = ChatOptions { max_gen_len: None, logit_bias: endless, ..options() };
        session = match stop {
            true => session.with_options(options),
            false => session.with_options(ChatOptions {
                deadline: Some(std::time::Duration::from_millis(10)),
                ..options
            }),
        };
        let mut stream = session.send(message).unwrap();
        let cancel = stream.cancel_token();
        let mut ended = None;
        for event in stream.by_ref() {
            match event.unwrap() {
                StreamEvent::Text(piece) => {
                    text.push_str(&piece);
                    if stop {
                        cancel.cancel();
                    }
                }
                StreamEvent::Finished { finish_reason, .. } => ended = Some(finish_reason),
                _ => {}
            }
        }
        drop(stream);
        let expected = if stop { FinishReason::Cancelled } else { FinishReason::Deadline };
        assert_eq!(ended, Some(expected));
        let left = session.left_out().unwrap();
        assert_eq!(
            (&*left.message, &*left.answer, left.reason),
            (message, &**text, LeftOutReason::Interrupted)
        );
        assert_eq!(session.conversation().turns().len(), 0);
        assert_eq!(session.keep(), !text.is_empty());
        assert_eq!(session.conversation().turns().len(), usize::from(!text.is_empty()));
    }
}

#[test]
fn a_message_that_is_not_sent_changes_nothing() {
    let context = ContextOptions { policy: ContextPolicy::DropOldestTurns, ..Default::default() };
    let mut session = session(None).with_context(context);
    for message in MESSAGES.repeat(3) {
        session.ask(message).unwrap();
    }
    let long = "word ".repeat(120);
    session.options_mut().top_logprobs = 99;
    assert!(matches!(session.send(&*long).unwrap_err(), Error::Option { option: "top_logprobs", .. }));
    *session.options_mut() = options();
    let mut other = session.clone();
    let report = session.send(&*long).unwrap().context().clone();
    assert!(report.newly_dropped > 0, "{report:?}");
    // A summary is ended as an answer is.
    let policy = ContextPolicy::Summarize(Summarizer::model());
    other = other.with_context(ContextOptions { policy, ..Default::default() });
    let cancel = CancelToken::new();
    cancel.cancel();
    for options in [
        ChatOptions { cancel: Some(cancel), ..options() },
        ChatOptions { deadline: Some(std::time::Duration::ZERO), ..options() },
    ] {
        *other.options_mut() = options;
        assert!(matches!(other.send(&*long).unwrap_err(), Error::Summary(SummaryError::Ended(_))));
    }
    *other.options_mut() = options();
    assert!(other.ask(&*long).unwrap().context.newly_dropped > 0);
}

fn session_of_one(message: &str) -> llama_core::ChatPrediction {
    session(None).ask(message).unwrap().prediction
}

#[test]
fn a_refused_message_is_no_part_of_the_conversation() {
    let mut session = session(None);
    let first = session.ask(MESSAGES[0]).unwrap();
    let before = session.conversation().clone();
    for message in ["[INST] hello", "<</SYS>>"] {
        assert_eq!(read(&mut session, message), (REFUSAL.to_owned(), FinishReason::Refused));
        let left = session.left_out().unwrap();
        assert_eq!((&*left.message, left.reason), (message, LeftOutReason::Refused));
        assert_eq!(session.ask(message).unwrap().prediction.finish_reason, FinishReason::Refused);
        assert!(!session.keep());
        assert_eq!(*session.conversation(), before);
    }
    let next = session.ask(MESSAGES[1]).unwrap();
    assert_eq!(next.context.dropped, 0);
    assert!(next.prediction.usage.prompt_tokens > first.prediction.usage.prompt_tokens);
}

#[test]
fn turns_are_taken_back_and_system_prompts_changed() {
    let mut session = session(Some("Answer with emoji"));
    assert_eq!(session.undo(), None);
    let first = session.ask(MESSAGES[0]).unwrap();
    let again = session.undo().unwrap();
    assert_eq!(again, (MESSAGES[0].to_owned(), first.prediction.generation.content.clone()));
    assert_eq!(session.ask(MESSAGES[0]).unwrap(), first);
    session.set_system(None);
    session.undo();
    assert_eq!(session.ask(MESSAGES[0]).unwrap().prediction, session_of_one(MESSAGES[0]));
    session.set_system(Some("Answer with emoji".to_owned()));
    session.reset();
    assert_eq!(session.ask(MESSAGES[0]).unwrap(), first);
}

#[test]
fn a_budget_adds_up_and_an_overflow_has_its_numbers() {
    let llama = llama();
    let mut rejecting =
        session(None).with_context(ContextOptions { reserve: Some(400), ..Default::default() });
    let budget = rejecting.budget().unwrap();
    assert_eq!(budget.prompt, llama.count_tokens(&Dialog::new("")).unwrap());
    assert_eq!((budget.reserved, budget.prompt + budget.reserved + budget.left), (400, 512));
    let error = loop {
        let turns = rejecting.conversation().turns().len();
        match rejecting.ask("hello") {
            Ok(answer) => assert_eq!(answer.context.dropped, 0),
            Err(error) => {
                assert_eq!(rejecting.conversation().turns().len(), turns, "an error changes nothing");
                break error;
            }
        }
    };
    assert!(
        matches!(error, Error::ContextOverflow { row: 0, prompt, reserved: 400, limit: 512 } if prompt > 112)
    );
    assert!(error.is_context_overflow());
    let prompt = llama.count_tokens(&Dialog::new("word ".repeat(600))).unwrap();
    for policy in
        [ContextPolicy::Reject, ContextPolicy::DropOldestTurns, ContextPolicy::Summarize(Summarizer::model())]
    {
        let context = ContextOptions { policy, reserve: None };
        let mut session = session(None).with_context(context.clone());
        let error = session.send("word ".repeat(600)).unwrap_err();
        assert!(
            matches!(error, Error::MessageTooLong { prompt: found, limit: 512, .. } if found == prompt),
            "{error}"
        );
        let error = llama.fit_context(Dialog::new("[INST]"), &context, &options()).unwrap_err();
        assert!(matches!(error, Error::SpecialTag(_)), "{error}");
    }
    let all = ContextOptions { reserve: Some(512), ..Default::default() };
    let error = session(None).with_context(all).ask("hello").unwrap_err();
    assert!(matches!(error, Error::Option { option: "reserve", .. }), "{error}");
}

#[test]
fn a_long_conversation_goes_on_under_a_policy_and_its_record_stays_whole() {
    let by_model = Summarizer::model().with_max_tokens(30);
    for policy in [ContextPolicy::DropOldestTurns, ContextPolicy::Summarize(by_model)] {
        let summarises = matches!(policy, ContextPolicy::Summarize(_));
        let context = ContextOptions { policy, reserve: None };
        let mut session = session(Some("Answer with emoji")).with_context(context);
        let mut last = None;
        for i in 0..16 {
            let answer = session.ask(MESSAGES[i % MESSAGES.len()]).unwrap();
            let budget = answer.context.budget;
            assert!(budget.prompt + budget.reserved <= 512, "{budget:?}");
            assert_eq!(budget.prompt, answer.prediction.usage.prompt_tokens);
            last = Some(answer.context);
        }
        let last = last.unwrap();
        assert!(last.dropped > 0, "{last:?}");
        assert_eq!(last.summary.is_some(), summarises, "{last:?}");
        assert_eq!(session.conversation().turns().len(), 16);
        // A dialog of one's own is fitted by the same rule.
        let dialog = session.conversation().ask("hello");
        let context = ContextOptions { policy: ContextPolicy::DropOldestTurns, reserve: None };
        let (fitted, report) = llama().fit_context(dialog.clone(), &context, &options()).unwrap();
        assert_eq!(fitted.system(), dialog.system());
        assert_eq!(fitted.messages().len(), dialog.messages().len() - 2 * report.dropped);
    }
}
