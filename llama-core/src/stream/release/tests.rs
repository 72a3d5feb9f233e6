use llama_backend::TokenId;
use proptest::prelude::*;

use super::*;
use crate::generate::FinishReason;
use crate::safety::{Excerpt, Guard, Guards, HoldBack, Prompt, Side, Verdict, WordList, guard_fn};

fn tokenizer() -> Tokenizer {
    Tokenizer::from_bytes(include_bytes!("../../../tests/fixtures/tokenizer.model")).unwrap()
}

fn token(tokenizer: &Tokenizer, id: u32) -> StreamToken {
    let text = tokenizer.decode_one(TokenId(id)).unwrap();
    StreamToken { id: TokenId(id), text, logprob: None, top_logprobs: Vec::new() }
}

/// Everything that comes out, piece by piece, and whether a stop string ended it.
fn released(ids: &[u32], stop: &[&str]) -> (Vec<Released>, bool) {
    released_by(&[], ids, stop, None)
}

fn released_by(echo: &[TokenId], ids: &[u32], stop: &[&str], judge: Option<Judge>) -> (Vec<Released>, bool) {
    let tokenizer = tokenizer();
    let mut release = Release::new(&tokenizer, stop.iter().copied().map(str::to_owned).collect(), judge);
    let mut all = Vec::new();
    if !echo.is_empty() {
        all.push(release.echo(echo.iter().map(|id| token(&tokenizer, id.0)).collect()).unwrap());
    }
    for &id in ids {
        all.push(release.push(token(&tokenizer, id)).unwrap());
        if all.last().unwrap().end.is_some() {
            return (all, true);
        }
    }
    all.push(release.finish());
    let stopped = all.last().unwrap().end.is_some();
    (all, stopped)
}

fn text(all: &[Released]) -> String {
    all.iter().map(|released| &*released.text).collect()
}

/// The rule as it is said: cut where the stop string that is complete first begins.
fn plain(text: &str, stop: &[&str]) -> (String, bool) {
    for (end, _) in text.char_indices().map(|(at, c)| (at + c.len_utf8(), c)) {
        let complete = stop.iter().filter(|stop| text[..end].ends_with(**stop)).max_by_key(|stop| stop.len());
        if let Some(stop) = complete {
            return (text[..end - stop.len()].to_owned(), true);
        }
    }
    (text.to_owned(), false)
}

#[test]
fn tokens_come_with_their_text_and_not_before() {
    // "😀" is four bytes.
    let (all, _) = released(&[243, 162, 155, 131], &[]);
    let counts: Vec<_> = all.iter().map(|released| (&*released.text, released.tokens.len())).collect();
    assert_eq!(counts, [("", 0), ("", 0), ("", 0), ("😀", 4), ("", 0)]);
    let tokenizer = tokenizer();
    let ids: Vec<u32> = tokenizer.encode("ab abc").iter().map(|id| id.0).collect();
    let (all, stopped) = released(&ids, &["abcd"]);
    assert!(!stopped);
    assert_eq!(text(&all), "ab abc");
    let (last, before) = all.split_last().unwrap();
    assert!(text(before).len() <= "ab ".len(), "what may be a stop string's beginning is held: {before:?}");
    assert!(last.text.ends_with("abc") && !last.tokens.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    /// However the text is cut into tokens: it ends where the rule says, no part of a stop string comes out, and the text of the
    /// tokens that come with a piece is that piece.
    #[test]
    fn a_stop_string_ends_the_answer_wherever_tokens_begin_and_end(
        words in prop::collection::vec(prop_oneof!["[abc ]{1,4}", Just("日本".to_owned()), Just("😀".to_owned())], 1..12),
        stop in prop::collection::vec(prop_oneof!["[abc ]{1,4}", Just("本a".to_owned()), Just("😀".to_owned())], 0..3),
        by_piece in any::<bool>(),
    ) {
        let tokenizer = tokenizer();
        let whole = words.concat();
        // In one go, or piece by piece: other tokens for much the same text.
        let ids: Vec<u32> = match by_piece {
            true => words.iter().flat_map(|word| tokenizer.encode(word)).map(|id| id.0).collect(),
            false => tokenizer.encode(&whole).iter().map(|id| id.0).collect(),
        };
        let said = tokenizer.decode(&ids.iter().copied().map(TokenId).collect::<Vec<_>>()).unwrap();
        let stop: Vec<&str> = stop.iter().map(String::as_str).collect();
        let (all, stopped) = released(&ids, &stop);
        prop_assert_eq!((text(&all), stopped), plain(&said, &stop));
        let mut release = Release::new(&tokenizer, Vec::new(), None);
        for released in &all {
            let mut of_tokens = String::new();
            for token in &released.tokens {
                of_tokens.push_str(&release.push(token.clone()).unwrap().text);
            }
            prop_assert!(released.text.starts_with(&of_tokens), "{:?}: {:?}", of_tokens, released);
            prop_assert!(released.end.is_some() || released.text == of_tokens, "{:?}: {:?}", of_tokens, released);
        }
    }

    /// However a text is cut into prompt, tokens and windows, and whether the prompt is echoed or not: the answer is refused where the whole text, told at
    /// once, would be; at no time is anything told that a guard refuses; and what nobody refuses is told to the character.
    #[test]
    fn nothing_that_a_guard_refuses_is_released(
        words in prop::collection::vec(prop_oneof!["[abcA. ]{1,4}", "a\u{200b}?bc", "[ａb]c", Just("日本\n".to_owned())], 1..14),
        border in any::<Option<(prop::sample::Index, bool)>>(),
        stop in prop::collection::vec("[abc ]{1,3}", 0..2),
        hold_back in hold_back(),
    ) {
        let list: WordList = "abc\na b\n/c[.]a/\nB".parse().unwrap();
        let refuses = |text: &str| allows(&list, text).is_none();
        let tokenizer = tokenizer();
        let mut prompt: Vec<TokenId> = words.iter().flat_map(|word| tokenizer.encode(word)).collect();
        let (border, echo) = border.map_or((0, false), |(border, echo)| (border.index(prompt.len() + 1), echo));
        let answer = prompt.split_off(border);
        let prompt = prompt_of(&tokenizer, &tokenizer.decode(&prompt).unwrap());
        prop_assume!(!refuses(&prompt.text));
        let document = tokenizer.decode(&[&prompt.tokens[..], &answer].concat()).unwrap();
        let said = if echo { document[prompt.text.len()..].to_owned() } else { tokenizer.decode(&answer).unwrap() };
        // What stands between the prompt and what is told: nothing, or the space that is not.
        let before = document[..document.len() - said.len()].to_owned();
        let stop: Vec<&str> = stop.iter().map(String::as_str).collect();
        let (whole, _) = plain(&said, &stop);
        let echoed = if echo { &*prompt.text } else { "" };
        let ids: Vec<u32> = answer.iter().map(|id| id.0).collect();
        let (all, _) = guarded(&prompt, echo, &ids, &stop, list.clone(), hold_back);
        let mut told = String::new();
        let mut tokens = Release::new(&tokenizer, Vec::new(), None);
        for released in &all {
            told.push_str(&released.text);
            let whole = if echo { told.clone() } else { format!("{before}{told}") };
            prop_assert!(!refuses(&whole), "{whole:?}");
            let mut of_tokens = String::new();
            for token in &released.tokens {
                of_tokens.push_str(&tokens.push(token.clone()).unwrap().text);
            }
            prop_assert!(released.text.starts_with(&of_tokens), "{of_tokens:?}: {released:?}");
        }
        let is_refused = all.last().unwrap().end == Some(End::Guarded);
        let document = format!("{before}{whole}");
        prop_assert_eq!(is_refused, refuses(&document), "{:?}", document);
        let whole = format!("{echoed}{whole}");
        prop_assert!(whole.starts_with(&told), "{told:?}");
        prop_assert!(is_refused || told == whole, "{told:?}");
        prop_assert!(!is_refused || all.last().unwrap().tokens.is_empty());
    }

    /// What is replaced comes out as if the whole had been replaced at once, or, told too early, not at all.
    #[test]
    fn what_is_replaced_is_never_released(
        words in prop::collection::vec(prop_oneof!["[abc ]{1,4}", Just("abc".to_owned()), Just(" ".to_owned())], 1..14),
        hold_back in hold_back(),
    ) {
        let list: WordList = "abc\na b".parse().unwrap();
        let tokenizer = tokenizer();
        let ids: Vec<u32> = words.iter().flat_map(|word| tokenizer.encode(word)).map(|id| id.0).collect();
        let said = tokenizer.decode(&ids.iter().copied().map(TokenId).collect::<Vec<_>>()).unwrap();
        let prompt = Prompt::tokens(Vec::new());
        let (all, _) = guarded(&prompt, false, &ids, &[], list.clone().replacing_with("***"), hold_back);
        let expected = allows(&list.clone().replacing_with("***"), &said).unwrap();
        let told = text(&all);
        let is_refused = all.last().unwrap().end == Some(End::Guarded);
        prop_assert!(allows(&list, &told).is_some(), "{told:?}");
        prop_assert!(is_refused || told == expected, "{told:?}, {expected:?}");
        let holds_a_word = match hold_back { HoldBack::Characters(n) => n >= 3, _ => true };
        prop_assert!(!is_refused || !holds_a_word || said.contains("  "), "{told:?} of {said:?}");
    }
}

fn hold_back() -> impl Strategy<Value = HoldBack> {
    prop_oneof![Just(HoldBack::Sentence), Just(HoldBack::Answer), (0usize..12).prop_map(HoldBack::Characters)]
}

/// What a guard makes of a whole text.
fn allows(guard: &WordList, text: &str) -> Option<String> {
    let excerpt =
        Excerpt { text, prompt_len: 0, side: Side::Output, role: crate::Role::Assistant, before: &[] };
    match guard.judge(&excerpt).unwrap() {
        Verdict::Allow => Some(text.to_owned()),
        Verdict::Replace { text, .. } => Some(text),
        Verdict::Refuse(_) => None,
    }
}

/// A text that is to be continued.
fn prompt_of(tokenizer: &Tokenizer, text: &str) -> Prompt {
    Prompt::text(tokenizer, &guards(guard_fn(|_| Verdict::Allow), HoldBack::default()), text).unwrap()
}

fn guards(guard: impl Guard + 'static, hold_back: HoldBack) -> Guards {
    let mut guards = Guards::default();
    guards.push(std::sync::Arc::new(guard));
    guards.hold_back = hold_back;
    guards
}

fn guarded(
    prompt: &Prompt,
    echo: bool,
    ids: &[u32],
    stop: &[&str],
    guard: WordList,
    hold_back: HoldBack,
) -> (Vec<Released>, bool) {
    let echo = if echo { &*prompt.tokens } else { &[] };
    released_by(echo, ids, stop, Judge::new(&guards(guard, hold_back), prompt))
}

/// A refused word, part of which is the prompt's.
#[test]
fn a_refused_word_may_begin_in_the_prompt() {
    let tokenizer = tokenizer();
    // The fixture spells in bytes what it has no letter for.
    let piece = |c: char| match c {
        ' ' => 259,
        'a' => 262,
        c => 3 + u32::from(c),
    };
    let list: WordList = "cab ab".parse().unwrap();
    for (at, _) in "cab ab".char_indices().skip(1) {
        for hold_back in [HoldBack::Sentence, HoldBack::Answer, HoldBack::Characters(0)] {
            let prompt = prompt_of(&tokenizer, &format!("a {}", &"cab ab"[..at]));
            let answer: Vec<u32> = "cab ab a"[at..].chars().map(piece).collect();
            for echo in [false, true] {
                let (all, ended) = guarded(&prompt, echo, &answer, &[], list.clone(), hold_back);
                assert!(ended, "{at}, {hold_back:?}, echo: {echo}: {all:?}");
                let told = if echo { &*prompt.text } else { "" };
                assert!(text(&all).starts_with(told) && text(&all).len() < told.len() + 6 - at, "{all:?}");
            }
        }
    }
}

/// What the model reads as a space is one to a guard, and an echo tells what was judged.
#[test]
fn a_prompt_is_judged_as_the_model_reads_it() {
    let list: WordList = "cab ab".parse().unwrap();
    let prompt = Prompt::text(&tokenizer(), &guards(list, HoldBack::default()), "cab▁ab").unwrap();
    assert_eq!(prompt.refused, Some(FinishReason::Guarded));
}

#[test]
fn the_tokens_of_what_was_replaced_are_dropped_and_the_others_kept() {
    let tokenizer = tokenizer();
    let ids: Vec<u32> = ["a ", "abc", " ", "c. ", "b"]
        .iter()
        .flat_map(|word| tokenizer.encode(word))
        .map(|id| id.0)
        .collect();
    let texts = |all: &[Released]| -> Vec<String> {
        all.iter().flat_map(|released| &released.tokens).map(|token| token.text.trim().to_owned()).collect()
    };
    let (plain, _) = released(&ids, &[]);
    let list: WordList = "abc".parse().unwrap();
    let prompt = Prompt::tokens(Vec::new());
    let (all, _) = guarded(&prompt, false, &ids, &[], list.replacing_with("***"), HoldBack::Sentence);
    assert_eq!(text(&all), text(&plain).replace("abc", "***"));
    let (kept, said) = (texts(&all).concat(), texts(&plain).concat());
    assert!(said.contains("abc") && !kept.contains("abc"), "{said}, {kept}");
    assert_eq!(kept, said.replace("abc", ""));
    assert_eq!(all.iter().map(|released| released.judgements.len()).sum::<usize>(), 1);
}
