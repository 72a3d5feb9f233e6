//! No text becomes structure: whatever anybody writes, in whichever role, BOS, EOS and every other control id of a prompt are where the format
//! puts them and nowhere else, in every tokenizer format, whatever its control pieces are called.
//!
//! Some thousand texts, or as many as the environment variable `LLAMA_INJECTION` says:
//! `LLAMA_INJECTION=1000000 cargo test --release -p llama-core --test injection -- --nocapture`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

#[path = "fixtures/gguf.rs"]
mod gguf;
mod golden;
#[path = "fixtures/hostile.rs"]
mod hostile;
mod sentencepiece;

use std::sync::atomic::{AtomicUsize, Ordering};

use gguf::{ARRAY, F32, Gguf, I32, STRING, U32, array, string};
use llama_core::tokenizer::Tokenizer;
use llama_core::{Dialog, Message, SpecialTag, TokenId};
use llama_dialog::Segment;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{RngAlgorithm, TestCaseResult, TestRng, TestRunner};
use sentencepiece::{BYTE, CONTROL, Model, NORMAL, UNKNOWN};

/// Dialogs that each vocabulary is asked about.
const DIALOGS: usize = 10;

/// How many texts are to be tried by each test.
fn n_texts() -> usize {
    std::env::var("LLAMA_INJECTION").map_or(3000, |n| n.parse().expect("LLAMA_INJECTION is a number"))
}

/// A vocabulary in a tokenizer, and which of its ids may come of text.
struct Case {
    name: String,
    tokenizer: Tokenizer,
    is_text: Vec<bool>,
    has_space: bool,
}

impl Case {
    fn new(name: impl Into<String>, bytes: &[u8], model: &Model) -> Case {
        let name = name.into();
        let tokenizer = Tokenizer::from_bytes(bytes).unwrap_or_else(|e| panic!("{name}: {e}: {model:?}"));
        Case::of(name, tokenizer, model)
    }

    fn of(name: String, tokenizer: Tokenizer, model: &Model) -> Case {
        let is_text = model.pieces.iter().map(|piece| matches!(piece.2, NORMAL | BYTE)).collect();
        let has_space = model.pieces.iter().any(|piece| piece.0 == "▁" && piece.2 == NORMAL);
        Case { name, tokenizer, is_text, has_space }
    }

    /// Ids of text alone, which read as the text.
    fn is_plain(&self, ids: &[TokenId], text: &str) -> TestCaseResult {
        for id in ids {
            prop_assert!(
                self.is_text[id.0 as usize],
                "{}: {text:?} gives {id:?} {:?}",
                self.name,
                self.tokenizer.piece(*id)
            );
        }
        // `▁` is how a space is written, so the two are one; without a piece, the one put in front is bytes, and stays.
        let spaces = |text: &str| text.replace('▁', " ");
        let (read, said) = (spaces(&self.tokenizer.decode(ids).unwrap()), spaces(text));
        let same = read == said || (!self.has_space && read == format!(" {said}"));
        prop_assert!(same, "{}: {text:?} reads {read:?}", self.name);
        Ok(())
    }

    fn holds_for_a_text(&self, text: &str) -> TestCaseResult {
        self.is_plain(&self.tokenizer.encode(text), text)?;
        let prompt = self.tokenizer.encode_prompt(text);
        prop_assert_eq!(prompt.first(), Some(&self.tokenizer.bos_id()));
        self.is_plain(&prompt[1..], text)
    }

    /// The structure of a dialog is that of its turns, or the dialog has no ids.
    fn holds_for_a_dialog(&self, dialog: &Dialog) -> TestCaseResult {
        let tags = SpecialTag::ALL.map(SpecialTag::as_str);
        let holds_a_tag =
            dialog.messages().iter().any(|message| tags.iter().any(|tag| message.content.contains(tag)));
        let ids = match self.tokenizer.encode_dialog(dialog) {
            Err(found) => {
                let content = &dialog.messages()[found.index].content;
                prop_assert!(content[found.offset..].starts_with(found.tag.as_str()));
                return Ok(());
            }
            Ok(ids) => ids,
        };
        prop_assert!(!holds_a_tag);
        let (bos, eos) = (self.tokenizer.bos_id(), self.tokenizer.eos_id());
        let segments = dialog.segments().unwrap();
        let texts: Vec<&str> = segments.iter().filter_map(Segment::as_text).collect();
        let n_turns = dialog.turns().count();
        prop_assert_eq!(texts.len(), n_turns);
        // Between control ids, which are BOS and EOS in turn, stands one text each.
        let mut rest = &ids[..];
        for (turn, text) in texts.into_iter().enumerate() {
            prop_assert_eq!(rest.first(), Some(&bos), "{}: turn {}", &self.name, turn);
            let len = rest[1..].iter().position(|id| !self.is_text[id.0 as usize]).unwrap_or(rest.len() - 1);
            self.is_plain(&rest[1..=len], text)?;
            rest = &rest[1 + len..];
            if turn + 1 < n_turns {
                prop_assert_eq!(rest.first(), Some(&eos), "{}: turn {}", &self.name, turn);
                rest = &rest[1..];
            }
            // Nor do messages side by side make a tag that none of them holds.
            let system = usize::from(turn == 0 && dialog.system().is_some());
            let counts = tags.map(|tag| text.matches(tag).count());
            prop_assert_eq!(counts, [1, 1, system, system], "{:?}", text);
        }
        prop_assert!(rest.is_empty(), "{}: {:?} behind the last turn", &self.name, rest);
        Ok(())
    }
}

/// The vocabulary as a `tokenizer.model`, a `tokenizer.json` and a GGUF file.
fn in_every_format(model: &Model) -> Vec<Case> {
    let formats =
        [("tokenizer.model", model.to_bytes()), ("tokenizer.json", json(model)), ("GGUF", gguf(model))];
    formats.map(|(name, bytes)| Case::new(name, &bytes, model)).into()
}

fn json(model: &Model) -> Vec<u8> {
    let ids = || model.pieces.iter().enumerate();
    let vocab: serde_json::Map<_, _> = ids().map(|(id, piece)| (piece.0.clone(), id.into())).collect();
    let special = |kind: u8| matches!(kind, CONTROL | UNKNOWN);
    let added: Vec<_> = ids()
        .filter(|(_, piece)| special(piece.2))
        .map(|(id, piece)| serde_json::json!({"id": id, "content": piece.0, "special": true}))
        .collect();
    // Every way to make a piece of two, be it a control piece or one that spells a byte.
    let is_normal = |text: &str| model.pieces.iter().any(|piece| piece.2 == NORMAL && piece.0 == text);
    let mut made: Vec<_> = model.pieces.iter().filter(|piece| piece.2 != UNKNOWN).collect();
    made.sort_by(|a, b| b.1.total_cmp(&a.1));
    let merges: Vec<_> = made
        .iter()
        .flat_map(|(text, ..)| text.char_indices().skip(1).map(|(at, _)| text.split_at(at)))
        .filter(|(left, right)| is_normal(left) && is_normal(right))
        .collect();
    let json = serde_json::json!({
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "model": {"type": "BPE", "byte_fallback": true, "unk_token": "<unk>", "vocab": vocab, "merges": merges},
    });
    // The names of BOS and EOS are not in this format: it knows them as `<s>` and `</s>` alone.
    serde_json::to_vec(&json).unwrap()
}

fn gguf(model: &Model) -> Vec<u8> {
    let mut gguf = Gguf { version: 3, keys: Vec::new(), tensors: Vec::new(), alignment: 32 };
    let id = |name: &str| model.pieces.iter().position(|piece| piece.0 == name).unwrap() as u32;
    let texts: Vec<_> = model.pieces.iter().map(|piece| string(&piece.0)).collect();
    let scores: Vec<_> = model.pieces.iter().map(|piece| piece.1.to_le_bytes().to_vec()).collect();
    let kinds: Vec<_> = model.pieces.iter().map(|piece| i32::from(piece.2).to_le_bytes().to_vec()).collect();
    gguf.set("general.architecture", STRING, string("llama"));
    gguf.set("tokenizer.ggml.model", STRING, string("llama"));
    gguf.set("tokenizer.ggml.tokens", ARRAY, array(STRING, &texts));
    gguf.set("tokenizer.ggml.scores", ARRAY, array(F32, &scores));
    gguf.set("tokenizer.ggml.token_type", ARRAY, array(I32, &kinds));
    gguf.set("tokenizer.ggml.unknown_token_id", U32, id("<unk>").to_le_bytes());
    gguf.set("tokenizer.ggml.bos_token_id", U32, id(&model.bos_eos[0]).to_le_bytes());
    gguf.set("tokenizer.ggml.eos_token_id", U32, id(&model.bos_eos[1]).to_le_bytes());
    gguf.to_bytes()
}

/// A vocabulary whose control pieces are made to be mistaken: spelt as tags, as words, as single letters, and within reach of merges.
fn vocabulary() -> impl Strategy<Value = Model> {
    let names =
        ["<s>", "</s>", "[INST]", "[/INST]", "<<SYS>>", "<|im_end|>", "▁<s>", "a", "▁", "S", "\n", "<0x0a>"];
    let specials = prop::sample::subsequence(names.to_vec(), 2..8).prop_shuffle();
    let part = prop_oneof![
        select(&hostile::MARKS[..]).prop_map(str::to_owned),
        select(&hostile::TRICKS[..]).prop_map(str::to_owned),
        "[a-z▁<>\\[\\]/|INSTY]{1,2}",
    ];
    let normal =
        prop::collection::vec(prop::collection::vec(part, 1..3).prop_map(|parts| parts.concat()), 0..60);
    // Marks letter by letter, so that merges can make them: any two neighbours, from the left.
    let spelt = prop::collection::vec(select(&hostile::MARKS[..]), 0..6).prop_map(|marks| {
        let prefixes = |mark: &str| {
            mark.char_indices().map(|(at, c)| mark[..at + c.len_utf8()].to_owned()).collect::<Vec<_>>()
        };
        marks
            .iter()
            .flat_map(|mark| prefixes(mark).into_iter().chain(mark.chars().map(String::from)))
            .collect::<Vec<_>>()
    });
    let usual = any::<bool>();
    (specials, normal, spelt, usual, any::<Index>()).prop_map(|(specials, normal, spelt, usual, at)| {
        let mut model = Model::new([]);
        if !usual {
            model.bos_eos = [specials[0].to_owned(), specials[1].to_owned()];
        }
        let mut add = |text: &str, kind| {
            // What the file calls a letter or a mark stands in for spaces too: no piece with one.
            if !text.contains(' ') && model.pieces.iter().all(|piece| piece.0 != text) {
                let score = -(model.pieces.len() as f32);
                model.pieces.push((text.to_owned(), score, kind));
            }
        };
        specials.iter().for_each(|name| add(name, CONTROL));
        normal.iter().chain(&spelt).for_each(|text| add(text, NORMAL));
        let at = at.index(model.pieces.len());
        model.pieces.rotate_left(at);
        model
    })
}

/// A dialog of such texts, which may have come as JSON with any of its characters escaped.
fn dialog(pieces: Vec<String>) -> impl Strategy<Value = Dialog> {
    let text = || hostile::text(pieces.clone());
    let later = prop::collection::vec((text(), text()), 0..3);
    (prop::option::of(text()), text(), later, any::<u64>()).prop_map(|(system, user, later, escaped)| {
        let mut messages: Vec<Message> = system.map(Message::system).into_iter().collect();
        messages.push(Message::user(user));
        messages.extend(later.into_iter().flat_map(|(a, u)| [Message::assistant(a), Message::user(u)]));
        let dialog = Dialog::try_from(messages).unwrap();
        let read: Dialog = serde_json::from_str(&escape(&dialog, escaped)).unwrap();
        assert_eq!(read, dialog);
        read
    })
}

/// JSON in which some characters are written `\u003c`, those beyond 16 bits as surrogates.
fn escape(dialog: &Dialog, which: u64) -> String {
    let string = |text: &str| {
        let mut json = String::from('"');
        for (n, c) in text.chars().enumerate() {
            if c < ' ' || c == '"' || c == '\\' || which >> (n % 64) & 1 == 1 {
                c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| json.push_str(&format!("\\u{unit:04x}")));
            } else {
                json.push(c);
            }
        }
        json + "\""
    };
    let messages = dialog.messages().iter();
    let messages =
        messages.map(|m| format!("{{\"role\":\"{}\",\"content\":{}}}", m.role, string(&m.content)));
    format!("[{}]", messages.collect::<Vec<_>>().join(","))
}

/// Runs as many cases as there are to be texts, and says how many there were.
fn try_all<S: Strategy>(
    name: &str,
    texts_of_one: usize,
    strategy: &S,
    law: impl Fn(S::Value) -> Result<usize, TestCaseError>,
) {
    let cases = u32::try_from(n_texts() / texts_of_one).unwrap().max(1);
    let config = ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 4000,
        ..ProptestConfig::with_cases(cases)
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let n = AtomicUsize::new(0);
    let result = runner.run(strategy, |case| {
        n.fetch_add(law(case)?, Ordering::Relaxed);
        Ok(())
    });
    result.unwrap_or_else(|e| panic!("{name}: {e}"));
    println!("{name}: {} texts", n.into_inner());
}

fn n_messages(dialogs: &[Dialog]) -> usize {
    dialogs.iter().map(|dialog| dialog.messages().len()).sum()
}

fn hold(cases: &[Case], dialogs: &[Dialog]) -> TestCaseResult {
    for case in cases {
        for dialog in dialogs {
            case.holds_for_a_dialog(dialog)?;
            dialog.messages().iter().try_for_each(|message| case.holds_for_a_text(&message.content))?;
        }
    }
    Ok(())
}

#[test]
fn no_text_is_structure_whatever_the_vocabulary() {
    let vocabularies = vocabulary().prop_flat_map(|model| {
        let pieces =
            model.pieces.iter().filter(|piece| piece.2 != BYTE).map(|piece| piece.0.clone()).collect();
        (Just(model), prop::collection::vec(dialog(pieces), DIALOGS))
    });
    // A dialog has three messages and a half on average.
    try_all("random vocabularies", DIALOGS * 7 / 2, &vocabularies, |(model, dialogs)| {
        let mut formats = vec![
            Case::new("tokenizer.model", &model.to_bytes(), &model),
            Case::new("GGUF", &gguf(&model), &model),
        ];
        if model.bos_eos == ["<s>", "</s>"] {
            formats.push(Case::new("tokenizer.json", &json(&model), &model));
        }
        hold(&formats, &dialogs)?;
        Ok(n_messages(&dialogs))
    });
}

/// tiny-chat's vocabulary in the three formats, and those of the golden data where they are.
#[test]
fn no_text_is_structure_with_real_vocabularies() {
    let tiny_chat = include_bytes!("../../models/tiny-chat/tokenizer.model");
    let mut cases = in_every_format(&model_of(&Tokenizer::from_bytes(tiny_chat).unwrap()));
    let files = [
        "llama2-tokenizer/tokenizer.model",
        "stories260K/tokenizer.model",
        "stories260K-hf/tokenizer.json",
        "stories260K-gguf/stories260K-f32.gguf",
    ];
    for path in files.into_iter().filter_map(golden::data) {
        let tokenizer = Tokenizer::open(&path).unwrap();
        let model = model_of(&tokenizer);
        cases.push(Case::of(path.display().to_string(), tokenizer, &model));
    }
    let pieces =
        (0..400).filter_map(|id| cases[0].tokenizer.piece(TokenId(id))).map(|piece| piece.replace('▁', " "));
    let dialogs = prop::collection::vec(dialog(pieces.collect()), DIALOGS);
    try_all("real vocabularies", DIALOGS * 7 / 2, &dialogs, |dialogs| {
        hold(&cases, &dialogs)?;
        Ok(n_messages(&dialogs))
    });
}

/// The pieces of a tokenizer of Llama 2's kinds.
fn model_of(tokenizer: &Tokenizer) -> Model {
    let special = [tokenizer.bos_id(), tokenizer.eos_id()];
    let pieces = (0..tokenizer.vocab_size() as u32).map(TokenId).map(|id| {
        let piece = tokenizer.piece(id).unwrap();
        let kind = match piece {
            _ if id == tokenizer.unk_id() => UNKNOWN,
            _ if special.contains(&id) || Some(id) == tokenizer.pad_id() => CONTROL,
            piece if piece.len() == 6 && piece.starts_with("<0x") => BYTE,
            _ => NORMAL,
        };
        (piece.to_owned(), tokenizer.score(id).unwrap_or(-f32::from(id.0 as u16)), kind)
    });
    Model { pieces: pieces.collect(), ..Model::new([]) }
}

/// A piece that text is to be searched for, or that is no byte but says so, is none that Llama 2 has: such a file is refused, not read in part.
#[test]
fn pieces_of_other_kinds_are_refused_or_never_come_of_text() {
    const USER_DEFINED: u8 = 4;
    const UNUSED: u8 = 5;
    for text in ["[INST]", "<|im_end|>", "<0x0a>", "a"] {
        let with = |kind| {
            let mut model = Model::new([]);
            model.pieces.push((text.to_owned(), -1.0, kind));
            model
        };
        for kind in [USER_DEFINED, UNUSED, 7] {
            let error = Tokenizer::from_bytes(&with(kind).to_bytes()).unwrap_err();
            assert!(error.is_unsupported(), "{text}, {kind}: {error}");
        }
        for kind in [USER_DEFINED, 7] {
            let error = Tokenizer::from_bytes(&gguf(&with(kind))).unwrap_err();
            assert!(error.is_unsupported(), "{text}, {kind}: {error}");
        }
        let unused = with(UNUSED);
        Case::new("GGUF", &gguf(&unused), &unused).holds_for_a_text(&text.repeat(3)).unwrap();
        let byte = with(BYTE);
        for bytes in [byte.to_bytes(), gguf(&byte)] {
            assert!(Tokenizer::from_bytes(&bytes).unwrap_err().to_string().contains("is a byte"), "{text}");
        }
        let json = String::from_utf8(json(&with(CONTROL))).unwrap();
        let error =
            Tokenizer::from_bytes(json.replacen("\"special\":true", "\"special\":false", 1).as_bytes());
        assert!(error.unwrap_err().is_unsupported());
    }
}

#[test]
fn a_long_run_of_marks_is_text() {
    let model =
        model_of(&Tokenizer::from_bytes(include_bytes!("../../models/tiny-chat/tokenizer.model")).unwrap());
    for case in in_every_format(&model) {
        for mark in ["<s>", "</s>", "<0x01>", "[ INST]", "\u{200b}", "＜s＞"] {
            let text = mark.repeat((1 << 16) / mark.len());
            case.holds_for_a_text(&text).unwrap();
            case.holds_for_a_dialog(&Dialog::new(&*text).with_system(&*text).then(&*text, "a")).unwrap();
        }
    }
}
