//! Many guarded requests from many threads, with lists of words drawn from what the model would say: whatever the windows, in a call, a batch, a stream or a session,
//! nothing that a list refuses is told, what none refuses is told to the character, and no slot is lost.
//!
//! 100 requests, or as many as the environment variable `LLAMA_SOAK` says.
#![cfg(feature = "candle")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use llama_backend::testing::Rng;
use llama_core::{
    ChatOptions, ChatPrediction, Dialog, FinishReason, HoldBack, Llama, Outcome, Side, StreamEvent, WordList,
};

const TINY_CHAT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-chat");
const THREADS: usize = 8;

const WORDS: [&str; 10] =
    ["the", "mayonnaise", "birthday", "message", "lake", "Paris", "recipe", "write", "brief", "secret"];

/// A request, made of its number alone, and what it is answered without guards.
struct Asked {
    dialog: Dialog,
    options: ChatOptions,
    plain: ChatPrediction,
    /// What each guard finds.
    lists: Vec<List>,
    hold_back: HoldBack,
    /// After how many events the reader of a stream leaves.
    leaves_after: Option<usize>,
}

struct List {
    words: Vec<String>,
    replaces: bool,
}

impl List {
    /// The rule as one would say it: the words of a text, letters and digits in a row, whatever their case.
    fn finds(&self, text: &str) -> bool {
        words(text).any(|word| self.words.iter().any(|refused| word.to_lowercase() == *refused))
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty())
}

fn pick<T: Clone>(rng: &mut Rng, all: &[T]) -> T {
    all[rng.below(all.len())].clone()
}

fn asked(number: usize, llama: &Llama) -> Asked {
    let mut rng = Rng::new(number as u64);
    let say = |rng: &mut Rng| {
        let n = 1 + rng.below(6);
        (0..n).map(|_| pick(rng, &WORDS)).collect::<Vec<_>>().join(" ")
    };
    let mut dialog = Dialog::new(match rng.below(3) {
        0 => "Write a brief birthday message to John".to_owned(),
        1 => "what is the recipe of mayonnaise?".to_owned(),
        _ => say(&mut rng),
    });
    if rng.below(2) == 0 {
        dialog = dialog.with_system("Always answer with Haiku.");
    }
    if rng.below(4) == 0 {
        dialog = dialog.then(say(&mut rng), say(&mut rng));
    }
    let options = ChatOptions {
        temperature: 0.8,
        seed: Some(number as u64),
        logprobs: true,
        top_logprobs: rng.below(3),
        max_gen_len: Some(1 + rng.below(48)),
        ..Default::default()
    };
    let plain = llama.chat_completion(std::slice::from_ref(&dialog), &options).unwrap().remove(0);
    let said: Vec<String> = words(&plain.generation.content).map(str::to_lowercase).collect();
    let list = |rng: &mut Rng| {
        let word = |rng: &mut Rng| match rng.below(4) {
            0..2 if !said.is_empty() => pick(rng, &said),
            2 => pick(rng, &WORDS).to_lowercase(),
            _ => "swordfish".to_owned(),
        };
        let n = 1 + rng.below(2);
        List { words: (0..n).map(|_| word(rng)).collect(), replaces: rng.below(4) == 0 }
    };
    let n = 1 + rng.below(3);
    Asked {
        lists: (0..n).map(|_| list(&mut rng)).collect(),
        hold_back: match rng.below(4) {
            0 => HoldBack::Sentence,
            1 => HoldBack::Answer,
            _ => HoldBack::Characters(rng.below(30)),
        },
        leaves_after: (rng.below(6) == 0).then(|| rng.below(10)),
        dialog,
        options,
        plain,
    }
}

impl Asked {
    fn guarded(&self, llama: &Llama) -> Llama {
        self.lists.iter().fold(llama.clone().with_hold_back(self.hold_back), |llama, list| {
            let words: WordList = list.words.join("\n").parse().unwrap();
            llama.with_guard(if list.replaces { words.replacing_with("*") } else { words })
        })
    }

    /// What is told holds nothing that a list is there for.
    fn is_clean(&self, what: &str, told: &str) {
        for list in &self.lists {
            assert!(!list.finds(told), "{what}: {:?} in {told:?}, {:?}", list.words, self.hold_back);
        }
    }

    fn check(&self, answer: &ChatPrediction) {
        let content = &answer.generation.content;
        self.is_clean("the answer", content);
        // The tokens that are told are those of the text, so what they spell is clean as well, unless some of them were replaced.
        let judged = |outcome| answer.judgements.iter().any(|judgement| judgement.outcome == outcome);
        let tokens = answer.tokens.as_ref().unwrap();
        assert_eq!(tokens.len(), answer.logprobs.as_ref().unwrap().len());
        for list in &self.lists {
            assert!(tokens.iter().all(|token| !list.finds(token) || content.contains(token.as_str())));
        }
        let is_replaced = judged(Outcome::Replaced) || judged(Outcome::ReplacedTooLate);
        let refuses = |text: &str| self.lists.iter().any(|list| !list.replaces && list.finds(text));
        let input_refused = self.dialog.messages().iter().any(|message| {
            // What an earlier guard has replaced, a later one does not find.
            self.lists.iter().enumerate().any(|(n, list)| {
                let replaced =
                    |word: &str| self.lists[..n].iter().any(|list| list.replaces && list.finds(word));
                let found = |word: &str| list.finds(word) && !replaced(word);
                !list.replaces && words(&message.content).any(found)
            })
        });
        let is_guarded = answer.finish_reason == FinishReason::Guarded;
        if input_refused {
            assert!(is_guarded && content.is_empty() && tokens.is_empty());
            assert_eq!(answer.usage, Default::default(), "nothing was computed");
            assert_eq!(answer.judgements.last().unwrap().side, Side::Input);
        } else if !is_replaced {
            let plain = &self.plain.generation.content;
            assert!(plain.starts_with(content.as_str()), "{content:?} of {plain:?}");
            assert_eq!(is_guarded, refuses(plain), "{plain:?}");
            assert!(is_guarded || content == plain);
        } else if is_guarded {
            assert!(judged(Outcome::Refused) || judged(Outcome::ReplacedTooLate));
        }
    }
}

/// Asks in one of four ways; each is given by the number.
fn ask(number: usize, llama: &Llama, asked: &Asked) -> ChatPrediction {
    let guarded = asked.guarded(llama);
    let dialogs = [asked.dialog.clone(), Dialog::new("Hello"), asked.dialog.clone()];
    let (one, options) = (&dialogs[..1], &asked.options);
    let answer = guarded.chat_completion(one, options).unwrap().remove(0);
    if number.is_multiple_of(2) {
        let mut batch = guarded.chat_completion(&dialogs, options).unwrap();
        batch.iter().for_each(|row| asked.is_clean("a batch", &row.generation.content));
        assert_eq!(batch.remove(0), answer);
    }
    let (mut told, mut tokens) = (String::new(), Vec::new());
    let mut stream = guarded.chat_stream(&asked.dialog, options).unwrap();
    let mut n_events = 0;
    for event in stream.by_ref() {
        match event.unwrap() {
            StreamEvent::Text(text) => told.push_str(&text),
            StreamEvent::Token(token) => tokens.push(token.text),
            StreamEvent::Finished { finish_reason, judgements, .. } => {
                assert_eq!((finish_reason, &judgements), (answer.finish_reason, &answer.judgements));
                assert_eq!((&told, Some(&tokens)), (&answer.generation.content, answer.tokens.as_ref()));
            }
            other => panic!("{other:?}"),
        }
        asked.is_clean("a stream", &told);
        n_events += 1;
        if asked.leaves_after == Some(n_events) {
            break;
        }
    }
    drop(stream);
    let (conversation, message) = asked.dialog.clone().split();
    let mut session = guarded.resume(conversation.clone()).with_options(options.clone());
    assert_eq!(session.ask(&*message).unwrap().prediction, answer);
    if answer.finish_reason == FinishReason::Guarded {
        assert_eq!(session.conversation(), &conversation, "what was refused is no part of a conversation");
        asked.is_clean("what was left out", &session.left_out().unwrap().answer);
        assert!(!session.keep());
    } else if let Some((_, kept)) = session.undo() {
        asked.is_clean("a session", &kept);
    }
    answer
}

#[test]
fn nothing_that_a_guard_refuses_is_told() {
    let n_requests: usize =
        std::env::var("LLAMA_SOAK").map_or(100, |n| n.parse().expect("LLAMA_SOAK is a number"));
    let llama = Llama::builder().checkpoint(TINY_CHAT).max_seq_len(512).threads(1);
    let llama = llama.max_batch_size(4).idle_slots(2).build().unwrap();
    let next = AtomicUsize::new(0);
    let counts = Mutex::new([0; 4]);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= n_requests {
                        break;
                    }
                    let asked = asked(number, &llama);
                    let answer = ask(number, &llama, &asked);
                    asked.check(&answer);
                    let kind = match (answer.finish_reason, answer.judgements.last()) {
                        (FinishReason::Guarded, Some(last)) if last.side == Side::Input => 0,
                        (FinishReason::Guarded, _) => 1,
                        (_, Some(_)) => 2,
                        (_, None) => 3,
                    };
                    counts.lock().unwrap()[kind] += 1;
                }
            });
        }
    });
    let counts = counts.into_inner().unwrap();
    println!("refused on the way in, on the way out, replaced, allowed: {counts:?}");
    assert!(counts.iter().all(|&n| n > n_requests / 50), "{counts:?}");
    for _ in 0..5000 {
        if llama.stats().running + llama.stats().waiting == 0 {
            return;
        }
        thread::sleep(Duration::from_millis(2));
    }
    panic!("a slot is lost: {:?}", llama.stats());
}
