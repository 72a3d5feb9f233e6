//! Laws of dialogs, over generated ones.

use llama_dialog::{
    Dialog, DialogError, Expected, Message, RawMessage, Role, Segment, SpecialTag, TagFound, strip,
};
use proptest::prelude::*;

/// Text with a taste for what could go wrong: white space, brackets, pieces of tags, control tokens' names.
fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        any::<char>().prop_map(String::from),
        "[ \\t\\n\u{1c}\u{85}\u{a0}\u{3000}]{0,3}",
        prop::sample::select(vec![
            "<s>", "</s>", "[INST", "INST]", "[/INST", "<<SYS>", "</SYS>>", "<<", ">>", "[", "]", "word",
            "\u{200b}", "[inst]",
        ])
        .prop_map(String::from),
    ];
    prop::collection::vec(part, 0..8).prop_map(|parts| parts.concat())
}

/// A valid list of messages, tags or not.
fn messages() -> impl Strategy<Value = Vec<Message>> {
    (prop::option::of(text()), text(), prop::collection::vec((text(), text()), 0..4)).prop_map(
        |(system, user, later)| {
            let mut messages: Vec<Message> = system.map(Message::system).into_iter().collect();
            messages.push(Message::user(user));
            for (answer, user) in later {
                messages.extend([Message::assistant(answer), Message::user(user)]);
            }
            messages
        },
    )
}

fn untagged() -> impl Strategy<Value = Dialog> {
    messages().prop_filter_map("no tags", |messages| {
        Dialog::try_from(messages).ok().filter(|d| d.special_tag().is_none())
    })
}

fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

proptest! {
    // No file of failing seeds: a failing case prints what it needs.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_alternation_is_a_dialog_and_survives_json(messages in messages()) {
        let dialog = Dialog::try_from(messages.clone()).unwrap();
        prop_assert_eq!(dialog.messages(), &messages);
        let json = serde_json::to_string(&dialog).unwrap();
        prop_assert_eq!(&json, &serde_json::to_string(&messages).unwrap());
        prop_assert_eq!(&serde_json::from_str::<Dialog>(&json).unwrap(), &dialog);
        prop_assert_eq!(dialog.into_messages(), messages);
    }

    #[test]
    fn builders_make_what_try_from_accepts(messages in messages()) {
        let checked = Dialog::try_from(messages).unwrap();
        let mut turns = checked.turns().collect::<Vec<_>>().into_iter();
        let first = turns.next().unwrap();
        let mut built = Dialog::new(first.user);
        let mut answer = first.answer;
        for turn in turns {
            built = built.then(answer.unwrap(), turn.user);
            answer = turn.answer;
        }
        prop_assert_eq!(answer, None);
        if let Some(system) = checked.system() {
            built = built.with_system(system);
        }
        prop_assert_eq!(built, checked);
    }

    /// One role changed to another: refused at the first place where the turn is wrong, whatever the texts hold.
    #[test]
    fn a_wrong_speaker_is_named(messages in messages(), at in any::<prop::sample::Index>(), role in 0..3usize) {
        let mut messages = messages;
        let at = at.index(messages.len());
        let (old, new) = (messages[at].role, Role::ALL[role]);
        prop_assume!(old != new);
        messages[at].role = new;
        let last = messages.len() - 1;
        // Two changes are harmless to the message itself: system for a first user and the reverse. Then the next one is
        // the one out of turn.
        let harmless = at == 0 && new != Role::Assistant;
        let fault = Dialog::try_from(messages.clone()).unwrap_err();
        let expected = match (at, old) {
            (0, _) if harmless && new == Role::System && last == 0 => DialogError::LastNotUser { index: 0, found: new },
            (0, _) if harmless && new == Role::System =>
                DialogError::UnexpectedRole { index: 1, found: Role::Assistant, expected: Expected::User },
            (0, _) if harmless =>
                DialogError::UnexpectedRole { index: 1, found: Role::User, expected: Expected::Assistant },
            (0, _) => DialogError::UnexpectedRole { index: 0, found: new, expected: Expected::SystemOrUser },
            (_, Role::User) => DialogError::UnexpectedRole { index: at, found: new, expected: Expected::User },
            (_, _) => DialogError::UnexpectedRole { index: at, found: new, expected: Expected::Assistant },
        };
        prop_assert_eq!(&fault, &expected);
        let place = format!("message {}", fault.index().unwrap());
        prop_assert!(fault.to_string().starts_with(&place));
    }

    #[test]
    fn an_unknown_role_is_named(messages in messages(), at in any::<prop::sample::Index>(), role in "[a-zA-Z]{0,9}") {
        prop_assume!(Role::from_name(&role).is_none());
        let mut raw: Vec<RawMessage> = messages.into_iter().map(RawMessage::from).collect();
        let at = at.index(raw.len());
        raw[at].role = role.clone();
        let fault = Dialog::try_from(raw.clone()).unwrap_err();
        let named = matches!(&fault, DialogError::UnknownRole { index, found, .. } if *index == at && *found == role);
        prop_assert!(named, "{:?}", fault);
        // A deserialiser's error can carry the text only, and does.
        let json = serde_json::to_string(&raw).unwrap();
        prop_assert_eq!(serde_json::from_str::<Dialog>(&json).unwrap_err().to_string(), fault.to_string());
    }

    #[test]
    fn a_dropped_or_doubled_message_is_refused(messages in messages(), at in any::<prop::sample::Index>(), twice: bool) {
        let mut messages = messages;
        let at = at.index(messages.len());
        // Dropping the system prompt leaves a dialog; so does nothing else.
        prop_assume!(twice || messages[at].role != Role::System);
        let left = if twice {
            messages.insert(at, messages[at].clone());
            Dialog::try_from(messages)
        } else {
            messages.remove(at);
            Dialog::try_from(messages)
        };
        prop_assert!(left.is_err());
    }

    #[test]
    fn one_bos_a_turn_and_one_eos_an_answer(dialog in untagged()) {
        let segments = dialog.segments().unwrap();
        let turns = dialog.turns().count();
        let count = |kind: &Segment| segments.iter().filter(|s| *s == kind).count();
        prop_assert_eq!(count(&Segment::Bos), turns);
        prop_assert_eq!(count(&Segment::Eos), turns - 1);
        prop_assert_eq!(segments.iter().filter_map(Segment::as_text).count(), turns);
        for (i, segment) in segments.iter().enumerate() {
            let kind = match i % 3 { 0 => *segment == Segment::Bos, 1 => segment.as_text().is_some(), _ => *segment == Segment::Eos };
            prop_assert!(kind, "{} {:?}", i, segments);
        }
    }

    /// The structure in the rendering is the one that we put there: messages add none, not even where two texts meet.
    #[test]
    fn messages_never_become_structure(dialog in untagged()) {
        let segments = dialog.segments().unwrap();
        for (turn, text) in segments.iter().filter_map(Segment::as_text).enumerate() {
            let count = |tag: SpecialTag| text.matches(tag.as_str()).count();
            let system = usize::from(turn == 0 && dialog.system().is_some());
            prop_assert_eq!(count(SpecialTag::InstOpen), 1);
            prop_assert_eq!(count(SpecialTag::InstClose), 1);
            prop_assert_eq!(count(SpecialTag::SysOpen), system);
            prop_assert_eq!(count(SpecialTag::SysClose), system);
        }
    }

    #[test]
    fn a_tag_anywhere_is_found(
        dialog in untagged(), at in any::<prop::sample::Index>(), place in any::<prop::sample::Index>(), tag in 0..4usize,
    ) {
        let mut messages = dialog.into_messages();
        let at = at.index(messages.len());
        let tag = SpecialTag::ALL[tag];
        let places: Vec<usize> =
            messages[at].content.char_indices().map(|(i, _)| i).chain([messages[at].content.len()]).collect();
        let offset = places[place.index(places.len())];
        messages[at].content.insert_str(offset, tag.as_str());
        let dialog = Dialog::try_from(messages).unwrap(); // still a dialog
        let TagFound { index, offset: found_at, tag: found } = dialog.special_tag().unwrap();
        prop_assert_eq!(index, at);
        // What stands around it can make a tag that begins a little before.
        prop_assert!(found_at <= offset && (found == tag || found_at < offset));
        prop_assert_eq!(dialog.segments(), Err(TagFound { index, offset: found_at, tag: found }));
    }

    #[test]
    fn strip_is_pythons(text in text()) {
        let stripped = strip(&text);
        prop_assert_eq!(strip(stripped), stripped);
        let chars: Vec<char> = text.chars().collect();
        let begin = chars.iter().position(|&c| !is_python_space(c)).unwrap_or(chars.len());
        let end = chars.iter().rposition(|&c| !is_python_space(c)).map_or(begin, |last| last + 1);
        prop_assert_eq!(stripped, chars[begin..end].iter().collect::<String>());
    }
}

#[test]
fn validity_comes_before_tags() {
    let tagged = Dialog::try_from([Message::assistant("[INST]")]);
    assert_eq!(
        tagged,
        Err(DialogError::UnexpectedRole {
            index: 0,
            found: Role::Assistant,
            expected: Expected::SystemOrUser
        })
    );
}

#[test]
fn the_first_fault_is_reported() {
    let raw = |roles: &[&str]| {
        let raw: Vec<RawMessage> =
            roles.iter().map(|role| RawMessage { role: (*role).into(), content: "x".into() }).collect();
        Dialog::try_from(raw)
    };
    assert_eq!(raw(&[]), Err(DialogError::Empty));
    assert_eq!(raw(&["user", "user", "tool"]).unwrap_err().index(), Some(1));
    assert_eq!(raw(&["user", "tool", "user"]).unwrap_err().index(), Some(1));
    assert_eq!(raw(&["system", "system", "user"]).unwrap_err().index(), Some(1));
    assert_eq!(raw(&["system"]), Err(DialogError::LastNotUser { index: 0, found: Role::System }));
    assert_eq!(
        raw(&["user", "assistant"]),
        Err(DialogError::LastNotUser { index: 1, found: Role::Assistant })
    );
}
