//! The adversarial suite: `adversarial.json` has what somebody may send who wants to be the system, to break a call, or to have told what a guard refuses, and what
//! each must give. Every case goes through the dialog's JSON, a call with neighbours, a stream and a session, to a model that says what the case has it say.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

#[path = "fixtures/hostile.rs"]
mod hostile;
#[path = "fixtures/scripted.rs"]
mod scripted;

use llama_core::{
    ChatOptions, ChatPrediction, Dialog, DialogError, Error, FinishReason, HoldBack, LeftOutReason, Llama,
    Outcome, PromptLeak, REFUSAL, Side, StreamEvent, TokenId, Verdict, WordList, guard_fn,
};
use llama_dialog::RawMessage;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use scripted::Scripted;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    about: String,
    /// What is sent: one of these four. Messages are made JSON of; JSON is sent as it stands, in text or in bytes; a prompt is continued.
    messages: Option<Vec<(String, String)>>,
    json: Option<String>,
    hex: Option<String>,
    prompt: Option<String>,
    /// How often the content of each message is repeated,
    #[serde(default = "once")]
    times: usize,
    /// and what stands behind the last.
    #[serde(default)]
    behind: String,
    /// What the model says.
    #[serde(default = "fine")]
    answer: String,
    /// Whether it says BOS between any two tokens of that.
    #[serde(default)]
    between: bool,
    #[serde(default)]
    guards: Vec<GuardOf>,
    #[serde(default)]
    hold_back: HoldBack,
    /// What is told nowhere.
    #[serde(default)]
    never: Vec<String>,
    expect: Expect,
}

#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum GuardOf {
    Words { words: String, with: Option<String> },
    Leak { leak: usize },
}

#[derive(Deserialize)]
#[serde(tag = "is", rename_all = "snake_case", deny_unknown_fields)]
enum Expect {
    /// Not the JSON of a list of messages.
    NoDialog,
    /// A list of messages that is no dialog.
    Fault { fault: String, message: Option<usize> },
    /// A special tag.
    Refused { message: usize, tag: String },
    /// Refused by a guard, after this was told.
    Guarded { side: Side, message: usize, guard: usize, category: String, outcome: Outcome, told: String },
    /// More than the context holds.
    TooLong,
    /// It is answered, and all that was sent is text.
    Plain {
        /// The answer, if it is not what the model says.
        answer: Option<String>,
        /// Whether it spells a tag, so that a session leaves it out.
        #[serde(default)]
        left_out: bool,
    },
    /// A prompt that is text.
    Text,
    /// A prompt that a guard refuses.
    TextGuarded,
}

fn once() -> usize {
    1
}

fn fine() -> String {
    "Fine.".to_owned()
}

impl Case {
    /// What is sent as a dialog.
    fn bytes(&self) -> Vec<u8> {
        if let Some(json) = &self.json {
            return json.clone().into_bytes();
        }
        if let Some(hex) = &self.hex {
            let digits: Vec<char> = hex.chars().collect();
            let byte = |pair: &[char]| u8::from_str_radix(&String::from_iter(pair), 16).unwrap();
            return digits.chunks(2).map(byte).collect();
        }
        let messages = self.messages.as_ref().expect("messages, json, hex or prompt");
        let raw = |(role, content): &(String, String)| RawMessage {
            role: role.clone(),
            content: content.repeat(self.times),
        };
        let mut raw: Vec<RawMessage> = messages.iter().map(raw).collect();
        if let Some(last) = raw.last_mut() {
            last.content.push_str(&self.behind);
        }
        serde_json::to_vec(&raw).unwrap()
    }

    fn guarded(&self, llama: &Llama) -> Llama {
        self.guards.iter().fold(llama.clone().with_hold_back(self.hold_back), |llama, guard| match guard {
            GuardOf::Leak { leak } => llama.with_guard(PromptLeak::more_than(*leak)),
            GuardOf::Words { words, with } => {
                let list: WordList = words.parse().unwrap();
                llama.with_guard(with.iter().fold(list, |list, with| list.replacing_with(with)))
            }
        })
    }

    /// Nothing that is told nowhere.
    fn is_kept(&self, told: &str) {
        for never in &self.never {
            assert!(!told.contains(never), "{}: {told}", self.about);
        }
    }
}

fn options() -> ChatOptions {
    ChatOptions { temperature: 0.0, logprobs: true, top_logprobs: 2, ..Default::default() }
}

/// A call, a stream and a session agree; what they say is given.
fn answered(case: &Case, llama: &Llama, dialog: &Dialog) -> Result<ChatPrediction, Error> {
    let alone = llama.chat_completion(std::slice::from_ref(dialog), &options());
    let stream = llama.chat_stream(dialog, &options());
    let (conversation, message) = dialog.clone().split();
    let mut session = llama.resume(conversation).with_options(options());
    let mut asked = session.clone();
    let Ok(mut answers) = alone else {
        assert!(stream.is_err() && session.send(&*message).is_err(), "{}", case.about);
        assert_eq!(session.to_json(), asked.to_json());
        return Err(alone.unwrap_err());
    };
    let answer = answers.remove(0);
    case.is_kept(&serde_json::to_string(&answer).unwrap());

    let neighbours = [Dialog::new("Hello"), dialog.clone(), Dialog::new("Hello")];
    let batch = llama.chat_completion(&neighbours, &options()).unwrap();
    assert_eq!(batch[1], answer, "{}", case.about);
    let hello = llama.chat_completion(&neighbours[..1], &options()).unwrap();
    assert_eq!((&batch[0], &batch[2]), (&hello[0], &hello[0]), "{}", case.about);

    let (mut text, mut tokens) = (String::new(), Vec::new());
    let mut stream = stream.unwrap();
    while let Some(event) = stream.next() {
        let event = event.unwrap();
        case.is_kept(&format!("{event:?}"));
        // A stream knows what it was asked, in which a system prompt may be what is not to be told.
        if dialog
            .messages()
            .iter()
            .all(|message| case.never.iter().all(|never| !message.content.contains(never)))
        {
            case.is_kept(&format!("{stream:?}"));
        }
        match event {
            StreamEvent::Text(piece) => text.push_str(&piece),
            StreamEvent::Token(token) => tokens.push(token.text),
            StreamEvent::Finished { finish_reason, judgements, .. } => {
                assert_eq!((finish_reason, judgements), (answer.finish_reason, answer.judgements.clone()));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        (&text, Some(&tokens)),
        (&answer.generation.content, answer.tokens.as_ref()),
        "{}",
        case.about
    );

    match session.send(&*message) {
        Ok(events) => events.for_each(|event| case.is_kept(&format!("{:?}", event.unwrap()))),
        // What fits is its first question: it has an error for what a guard would refuse.
        Err(error) => {
            let too_long = matches!(error, Error::MessageTooLong { .. });
            assert!(too_long && answer.finish_reason == FinishReason::Guarded, "{}: {error}", case.about);
            return Ok(answer);
        }
    }
    assert_eq!(asked.ask(&*message).unwrap().prediction, answer, "{}", case.about);
    for mut session in [session, asked] {
        session.set_system(None);
        case.is_kept(&format!("{session:?}"));
        case.is_kept(&session.to_json());
        let left_out = session.left_out().map(|left| left.reason);
        let expected = match (&case.expect, answer.finish_reason) {
            (_, FinishReason::Refused) => Some(LeftOutReason::Refused),
            (_, FinishReason::Guarded) => Some(LeftOutReason::Guarded),
            (Expect::Plain { left_out: true, .. }, _) => Some(LeftOutReason::SpecialTag),
            _ => None,
        };
        assert_eq!(left_out, expected, "{}", case.about);
        // What was saved is what can be gone on with.
        let again = llama.session_from_json(&session.to_json()).unwrap();
        assert!(again.conversation().ask("x").special_tag().is_none() || expected.is_some());
    }
    Ok(answer)
}

/// The control ids of a prompt are those of the format, and what it says is what was sent.
fn is_text(case: &Case, llama: &Llama, prompt: &[TokenId], n_turns: usize) {
    let tokenizer = llama.tokenizer();
    let count = |id: TokenId| prompt.iter().filter(|&&token| token == id).count();
    assert_eq!(prompt.first(), Some(&tokenizer.bos_id()), "{}", case.about);
    let counts = [tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.unk_id()].map(count);
    assert_eq!(counts, [n_turns, n_turns - 1, 0], "{}", case.about);
}

/// Runs one case; the model is asked by this test alone.
fn run(case: &Case, model: &Scripted, llama: &Llama) {
    let about = &*case.about;
    let said = llama.tokenizer().encode(&case.answer);
    let bos = llama.tokenizer().bos_id();
    model.says_tokens(match case.between {
        true => said.iter().flat_map(|&id| [id, bos]).collect(),
        false => said,
    });
    model.prompts();
    let guarded = case.guarded(llama);
    if let Some(prompt) = &case.prompt {
        let answer = guarded.text_completion(&[prompt], &options()).unwrap().remove(0);
        let given = model.prompts();
        match case.expect {
            Expect::TextGuarded => {
                assert_eq!((answer.finish_reason, given.len()), (FinishReason::Guarded, 0), "{about}");
                assert_eq!(answer.judgements[0].side, Side::Input);
            }
            Expect::Text => {
                is_text(case, llama, &given[0], 1);
                assert_eq!(llama.tokenizer().decode(&given[0]).unwrap(), *prompt, "{about}");
                assert_eq!(answer.finish_reason, FinishReason::Stop, "{about}");
            }
            _ => panic!("{about}: a prompt is text or guarded"),
        }
        return;
    }

    let bytes = case.bytes();
    let raw = serde_json::from_slice::<Vec<RawMessage>>(&bytes);
    let dialog = serde_json::from_slice::<Dialog>(&bytes);
    let typed = match (&case.expect, raw) {
        (Expect::NoDialog, raw) => {
            assert!(raw.is_err() && dialog.is_err(), "{about}");
            // A session says so in a type of its own.
            let json = String::from_utf8(bytes);
            let loaded = json.map(|json| llama.session_from_json(&json).unwrap_err());
            assert!(loaded.is_err() || matches!(loaded, Ok(Error::Json(_))), "{about}");
            return;
        }
        (_, raw) => Dialog::try_from(raw.unwrap_or_else(|e| panic!("{about}: {e}"))),
    };
    if let Expect::Fault { fault, message } = &case.expect {
        let found = typed.unwrap_err();
        let name = match &found {
            DialogError::Empty => "Empty",
            DialogError::UnknownRole { .. } => "UnknownRole",
            DialogError::UnexpectedRole { .. } => "UnexpectedRole",
            DialogError::LastNotUser { .. } => "LastNotUser",
            other => panic!("{about}: {other}"),
        };
        assert_eq!((name, found.index()), (&**fault, *message), "{about}");
        assert_eq!(dialog.unwrap_err().to_string(), found.to_string(), "{about}");
        return;
    }
    let dialog = dialog.unwrap_or_else(|e| panic!("{about}: {e}"));
    assert_eq!(Ok(&dialog), typed.as_ref());
    let answer = answered(case, &guarded, &dialog);
    let given = model.prompts();
    let answer = match (&case.expect, answer) {
        (Expect::TooLong, answer) => {
            let error = answer.unwrap_err();
            let Error::ContextOverflow { row: 0, prompt, limit, .. } = error else {
                panic!("{about}: {error}")
            };
            assert!(prompt + 1 > limit && given.is_empty(), "{about}");
            return;
        }
        (_, answer) => answer.unwrap_or_else(|e| panic!("{about}: {e}")),
    };
    let content = &answer.generation.content;
    let hello = llama.tokenizer().encode_dialog(&Dialog::new("Hello")).unwrap();
    let given: Vec<_> = given.into_iter().filter(|prompt| *prompt != hello).collect();
    match &case.expect {
        Expect::Refused { message, tag } => {
            assert_eq!((content.as_str(), answer.finish_reason), (REFUSAL, FinishReason::Refused), "{about}");
            assert_eq!(given.len(), 0, "{about}: nothing is computed");
            if case.guards.is_empty() {
                let found = dialog.special_tag().unwrap();
                assert_eq!((found.index, found.tag.as_str()), (*message, &**tag), "{about}");
            }
        }
        Expect::Guarded { side, message, guard, category, outcome, told } => {
            assert_eq!((content, answer.finish_reason), (told, FinishReason::Guarded), "{about}");
            let last = answer.judgements.last().unwrap();
            let found = (last.side, last.message, last.guard, &last.category, last.outcome);
            assert_eq!(found, (*side, *message, *guard, category, *outcome), "{about}");
            assert!(!last.reason.is_empty(), "{about}: a reason");
            assert_eq!(given.is_empty(), *side == Side::Input, "{about}");
        }
        Expect::Plain { answer: expected, .. } => {
            assert_eq!(answer.finish_reason, FinishReason::Stop, "{about}");
            assert_eq!(content, expected.as_ref().unwrap_or(&case.answer), "{about}");
            assert!(!given.is_empty());
            let n_turns = dialog.turns().count();
            given.iter().for_each(|prompt| is_text(case, llama, prompt, n_turns));
        }
        _ => panic!("{about}: a dialog is not a prompt"),
    }
}

#[test]
fn every_case_gives_what_it_must() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("adversarial.json")).unwrap();
    let model = Scripted::new();
    let llama = model.builder().max_batch_size(2).build().unwrap();
    for case in &cases {
        run(case, &model, &llama);
    }
    println!("adversarial.json: {} cases", cases.len());
    assert_eq!(llama.stats().running, 0);
}

/// Whatever the windows: what must not be told is not told.
#[test]
fn no_hold_back_tells_what_another_does_not() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("adversarial.json")).unwrap();
    let model = Scripted::new();
    let llama = model.builder().max_batch_size(2).build().unwrap();
    // Seven words of a system prompt may be told, and are where nothing is held back.
    let is_whole = |guard: &GuardOf| matches!(guard, GuardOf::Words { .. });
    for mut case in
        cases.into_iter().filter(|case| !case.never.is_empty() && case.guards.iter().all(is_whole))
    {
        let answer = llama.tokenizer().encode(&case.answer);
        model.says_tokens(answer);
        for hold_back in [HoldBack::Sentence, HoldBack::Answer]
            .into_iter()
            .chain([0, 1, 2, 5, 9, 40, 1000].map(HoldBack::Characters))
        {
            case.hold_back = hold_back;
            let dialog = serde_json::from_slice(&case.bytes()).unwrap();
            let answer = answered(&case, &case.guarded(&llama), &dialog).unwrap();
            let replaces = matches!(case.expect, Expect::Plain { .. });
            assert!(
                replaces || answer.finish_reason == FinishReason::Guarded,
                "{}: {hold_back:?}",
                case.about
            );
        }
    }
}

/// What the engine is given is the dialog's own ids, by whichever call, and whatever a guard writes: `tests/injection.rs` says what those are.
#[test]
fn the_model_is_given_the_format_and_text() {
    let model = Scripted::new();
    let llama = model.builder().max_batch_size(1).max_seq_len(2048).context_limit(2048).build().unwrap();
    let dialogs = prop::collection::vec(hostile::text(Vec::new()), 1..5);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let options = ChatOptions { max_gen_len: Some(1), ..options() };
    let law = |texts: Vec<String>| {
        let mut dialog = Dialog::new(&*texts[0]);
        for pair in texts[1..].chunks_exact(2) {
            dialog = dialog.then(&*pair[0], &*pair[1]);
        }
        if texts.len().is_multiple_of(2) {
            dialog = dialog.with_system(&*texts[texts.len() - 1]);
        }
        let written = texts.concat();
        let replaces = guard_fn(move |_| Verdict::replace(written.clone(), "", ""));
        for llama in [llama.clone(), llama.clone().with_guard(replaces)] {
            model.prompts();
            let Ok(answers) = llama.chat_completion(std::slice::from_ref(&dialog), &options) else {
                continue; // too long
            };
            let given = model.prompts();
            prop_assert_eq!(given.is_empty(), answers[0].finish_reason == FinishReason::Refused);
            for prompt in given {
                let n_bos = prompt.iter().filter(|&&id| id == llama.tokenizer().bos_id()).count();
                let n_eos = prompt.iter().filter(|&&id| id == llama.tokenizer().eos_id()).count();
                prop_assert_eq!([n_bos, n_eos + 1], [dialog.turns().count(); 2]);
            }
            let text = llama.text_completion(&[&texts[0]], &options);
            prop_assert!(text.is_ok());
            for prompt in model.prompts() {
                prop_assert_eq!(prompt[0], llama.tokenizer().bos_id());
                prop_assert!(prompt[1..].iter().all(|id| id.0 > 2));
            }
        }
        Ok(())
    };
    runner.run(&dialogs, law).unwrap_or_else(|e| panic!("{e}"));
}
