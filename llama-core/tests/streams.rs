//! Streams on tiny-chat: they say what the calls say that wait, end when they are told to, and share one model.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use llama_core::{
    BatchStream, CancelToken, ChatOptions, ChatStream, CompletionOptions, Dialog, Error, FinishReason,
    GenerateError, Llama, StreamEvent, StreamToken, TokenId, Usage, WordList,
};

const TINY_CHAT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-chat");

fn llama() -> Llama {
    Llama::builder().checkpoint(TINY_CHAT).max_batch_size(4).build().unwrap()
}

#[derive(Debug, Default, PartialEq)]
struct Heard {
    text: String,
    tokens: Vec<StreamToken>,
    end: Option<(FinishReason, Usage)>,
}

impl Heard {
    fn hear(&mut self, event: StreamEvent) {
        assert!(self.end.is_none(), "nothing follows the end");
        match event {
            StreamEvent::Text(text) => self.text.push_str(&text),
            StreamEvent::Token(token) => self.tokens.push(token),
            StreamEvent::Finished { finish_reason, usage, .. } => self.end = Some((finish_reason, usage)),
            other => panic!("{other:?}"),
        }
    }
}

fn hear(stream: ChatStream) -> Heard {
    let mut heard = Heard::default();
    stream.for_each(|event| heard.hear(event.unwrap()));
    heard
}

fn dialog() -> Dialog {
    Dialog::new("Write a brief birthday message to John")
}

fn greedy() -> ChatOptions {
    ChatOptions { temperature: 0.0, ..Default::default() }
}

#[test]
fn a_stream_gives_what_the_call_gives_logprobs_and_alternatives_included() {
    let llama = llama();
    let options =
        ChatOptions { logprobs: true, top_logprobs: 3, max_gen_len: Some(20), ..Default::default() };
    let whole = llama.chat_completion(&[dialog()], &options).unwrap().remove(0);
    let heard = hear(llama.chat_stream(&dialog(), &options).unwrap());
    assert_eq!(heard.text, whole.generation.content);
    assert_eq!(heard.end, Some((whole.finish_reason, whole.usage)));
    let texts: Vec<_> = heard.tokens.iter().map(|token| token.text.clone()).collect();
    assert_eq!(Some(texts), whole.tokens);
    let logprobs: Vec<_> = heard.tokens.iter().map(|token| token.logprob.unwrap()).collect();
    assert_eq!(Some(logprobs), whole.logprobs);
    let choices: Vec<_> = heard.tokens.iter().map(|token| token.top_logprobs.clone()).collect();
    for (choices, token) in choices.iter().zip(&heard.tokens) {
        assert_eq!(choices.len(), 3);
        assert!(choices.is_sorted_by(|a, b| a.logprob >= b.logprob));
        assert!(choices.iter().all(|choice| choice.id != token.id || Some(choice.logprob) == token.logprob));
    }
    assert_eq!(Some(choices), whole.top_logprobs);
}

/// What each answer of a call is told, event by event.
fn hear_all(stream: BatchStream, n: usize) -> Vec<Heard> {
    let mut heard: Vec<Heard> = (0..n).map(|_| Heard::default()).collect();
    stream.for_each(|event| {
        let (place, event) = event.unwrap();
        heard[place].hear(event);
    });
    heard
}

#[test]
fn a_stream_of_many_answers_gives_what_the_calls_give() {
    let llama = llama();
    let options = ChatOptions { max_gen_len: Some(20), ..Default::default() };
    // The same dialog twice is answered from two random streams.
    let dialogs = [dialog(), Dialog::new("Hello"), dialog()];
    let whole = llama.chat_completion(&dialogs, &options).unwrap();
    let heard = hear_all(llama.chat_streams(&dialogs, &options).unwrap(), 3);
    for (heard, whole) in heard.iter().zip(&whole) {
        assert_eq!(heard.text, whole.generation.content);
        assert_eq!(heard.end, Some((whole.finish_reason, whole.usage)));
    }
    let texts = ["Once upon a time", "The"];
    let whole = llama.text_completion(&texts, &options).unwrap();
    let heard = hear_all(llama.text_streams(&texts, &options).unwrap(), 2);
    assert!(heard.iter().map(|heard| &heard.text).eq(whole.iter().map(|whole| &whole.generation)));
    // The tokens that the texts are made of.
    let tokens = texts.map(|text| llama.tokenizer().encode_prompt(text));
    assert_eq!(hear_all(llama.generate_streams(&tokens, &options).unwrap(), 2), heard);
    assert!(matches!(llama.chat_streams(&[], &options), Err(Error::Empty { what: "dialogs" })));
}

#[test]
fn a_call_tells_at_once_which_prompt_is_refused() {
    let llama = llama();
    let dialogs = [dialog(), Dialog::new("[INST] Hello")];
    let stream = llama.chat_streams(&dialogs, &greedy()).unwrap();
    let refused = stream.refused().unwrap();
    assert_eq!(
        (refused.place, refused.finish_reason, refused.judgements.len()),
        (1, FinishReason::Refused, 0)
    );
    let guarded = llama.clone().with_guard("birthday".parse::<WordList>().unwrap());
    let stream = guarded.chat_streams(&dialogs, &greedy()).unwrap();
    let refused = stream.refused().unwrap();
    let found = (refused.place, refused.finish_reason, refused.judgements[0].message);
    assert_eq!(found, (0, FinishReason::Guarded, 0));
    assert!(llama.chat_streams(&[dialog()], &greedy()).unwrap().refused().is_none());
    let tokens = [llama.tokenizer().encode_prompt("a birthday")];
    let refused = guarded.generate_streams(&tokens, &greedy());
    assert!(matches!(refused, Err(Error::Guarded { call: "generate_streams" })));
}

#[test]
fn a_text_stream_gives_what_text_completion_gives() {
    let llama = llama();
    for (echo, logprobs) in [(false, false), (false, true), (true, false), (true, true)] {
        let options = CompletionOptions { echo, logprobs, max_gen_len: Some(12), ..Default::default() };
        let whole = llama.text_completion(&["The lake is"], &options).unwrap().remove(0);
        let heard = hear(llama.text_stream("The lake is", &options).unwrap());
        assert_eq!(heard.text, whole.generation);
        assert_eq!(echo, heard.text.starts_with("The lake is"));
        let found: Vec<_> = heard.tokens.iter().map(|token| token.logprob).collect();
        // The prompt's first token has no probability; the reference's list of numbers has 0 there.
        assert!(
            found.iter().enumerate().all(|(i, found)| found.is_some() == (logprobs && !(echo && i == 0)))
        );
        let found = found.into_iter().map(Option::unwrap_or_default).collect();
        assert_eq!(whole.logprobs, logprobs.then_some(found));
        assert_eq!(heard.end, Some((whole.finish_reason, whole.usage)));
    }
}

/// What an echo tells of a prompt's tokens is what would have been told had each been generated, with the likeliest beside it; its first token stands
/// behind nothing, BOS or not.
#[test]
fn an_echoed_prompt_has_the_logprobs_and_alternatives_of_an_answer() {
    let llama = llama();
    let prompt = llama.tokenizer().encode_prompt("The lake is");
    let options = CompletionOptions { logprobs: true, top_logprobs: 3, max_gen_len: Some(12), ..greedy() };
    let said =
        hear_all(llama.generate_streams(std::slice::from_ref(&prompt), &options).unwrap(), 1).remove(0);
    let said_ids = said.tokens.iter().map(|token| token.id);
    let whole: Vec<TokenId> = prompt.iter().copied().chain(said_ids).collect();
    let echo = CompletionOptions { echo: true, max_gen_len: Some(0), ..options.clone() };
    for prompt_len in [prompt.len(), 0] {
        let echoed = hear_all(
            llama.generate_streams(&[whole[prompt.len() - prompt_len..].to_vec()], &echo).unwrap(),
            1,
        );
        let tokens = &echoed[0].tokens;
        assert_eq!(tokens.len(), prompt_len + said.tokens.len());
        assert_eq!((tokens[0].logprob, &tokens[0].top_logprobs[..]), (None, &[][..]));
        assert!(tokens[1..].iter().all(|token| token.logprob.is_some() && token.top_logprobs.len() == 3));
        if prompt_len > 0 {
            assert_eq!(tokens[prompt_len..], said.tokens);
        }
    }
}

#[test]
fn a_stop_string_ends_the_answer_before_it_in_every_call() {
    let llama = llama();
    let whole = llama.chat_completion(&[dialog()], &greedy()).unwrap().remove(0);
    let content = &whole.generation.content;
    // From the middle of a word to the middle of the next.
    let space = content[10..].find(' ').unwrap() + 10;
    let stop = &content[space - 2..space + 3];
    let expected = &content[..content.find(stop).unwrap()];
    let options = ChatOptions { stop: vec!["never said".into(), stop.into()], logprobs: true, ..greedy() };
    let heard = hear(llama.chat_stream(&dialog(), &options).unwrap());
    assert_eq!(heard.text, expected);
    let (reason, usage) = heard.end.unwrap();
    assert_eq!(reason, FinishReason::StopString);
    assert!(
        usage.completion_tokens >= heard.tokens.len()
            && usage.completion_tokens < whole.usage.completion_tokens
    );
    let of_tokens: String = heard.tokens.iter().map(|token| &*token.text).collect();
    assert!(expected.starts_with(of_tokens.trim_start()), "{of_tokens:?}");
    let answers = llama.chat_completion(&[dialog(), dialog()], &options).unwrap();
    assert_eq!(answers[0].generation.content, expected);
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0].logprobs.as_ref().map(Vec::len), Some(heard.tokens.len()));
    // `generate` has no text of its own, and stops all the same.
    let prompt = llama.tokenizer().encode_dialog(&dialog()).unwrap();
    let (tokens, _) = llama.generate(&[prompt], &options).unwrap();
    assert_eq!(tokens[0], heard.tokens.iter().map(|token| token.id).collect::<Vec<TokenId>>());
}

#[test]
fn a_cancelled_answer_keeps_its_beginning() {
    let llama = llama();
    let whole = llama.chat_completion(&[dialog()], &greedy()).unwrap().remove(0);
    let mut stream = llama.chat_stream(&dialog(), &greedy()).unwrap();
    let cancel = stream.cancel_token();
    let mut heard = Heard::default();
    heard.hear(stream.next().unwrap().unwrap());
    cancel.cancel();
    stream.by_ref().for_each(|event| heard.hear(event.unwrap()));
    assert!(whole.generation.content.starts_with(&heard.text));
    // It may have been complete already.
    let (reason, usage) = heard.end.unwrap();
    assert!(matches!(reason, FinishReason::Cancelled | FinishReason::Stop));
    assert_eq!(usage.completion_tokens, heard.tokens.len());
    // A token that was cancelled before ends a call at once.
    let options = ChatOptions { cancel: Some(cancel), ..greedy() };
    let answers = llama.chat_completion(&[dialog(), dialog()], &options).unwrap();
    assert!(answers.iter().all(|answer| answer.finish_reason == FinishReason::Cancelled));
    assert!(answers.iter().all(|answer| answer.generation.content.is_empty()));
}

#[test]
fn a_deadline_that_has_passed_is_no_error() {
    let options = ChatOptions { deadline: Some(Duration::ZERO), ..greedy() };
    let heard = hear(llama().chat_stream(&dialog(), &options).unwrap());
    assert_eq!(heard.end.unwrap().0, FinishReason::Deadline);
}

#[test]
fn metrics_tell_what_was_cached() {
    let llama = llama();
    let ask = || llama.chat_completion(&[dialog()], &greedy()).unwrap().remove(0);
    let (first, again) = (ask(), ask());
    assert_eq!(first, again);
    assert_eq!(first.metrics.cached_tokens, 0);
    assert_eq!(again.metrics.cached_tokens, again.usage.prompt_tokens - 1);
    assert!(first.metrics.time_to_first_token.unwrap() >= first.metrics.queue_time);
    assert!(first.metrics.tokens_per_second.unwrap() > 0.0);
    let stats = llama.stats();
    assert_eq!(stats.prefilled_tokens as usize, first.usage.prompt_tokens + 1);
    assert_eq!((stats.slots, stats.running, stats.waiting, stats.prefix_hits), (4, 0, 0, 1));
}

#[test]
fn each_turn_of_a_conversation_prefills_what_is_new_and_answers_as_if_asked_afresh() {
    let llama = llama();
    let options = ChatOptions { logprobs: true, max_gen_len: Some(30), ..greedy() };
    let ask = |llama: &Llama, dialog: &Dialog| {
        llama.chat_completion(std::slice::from_ref(dialog), &options).unwrap().remove(0)
    };
    let mut dialog = Dialog::new("Hello").with_system("You are a helpful assistant.");
    let mut before = 0;
    for turn in 0..5 {
        let answer = ask(&llama, &dialog);
        assert_eq!(answer, ask(&self::llama(), &dialog), "turn {turn}");
        // All of the last turn's prompt, and most of its answer: encoded as text, its end may be other tokens.
        let cached = answer.metrics.cached_tokens;
        assert!(cached >= before, "turn {turn}: {cached} of {before} cached");
        before = answer.usage.prompt_tokens + answer.usage.completion_tokens / 2;
        dialog = dialog.then(answer.generation.content, "And what else?");
    }
}

#[test]
fn options_that_make_no_sense_are_refused_before_anything_is_computed() {
    let llama = llama();
    let refused = |options: ChatOptions| llama.chat_stream(&dialog(), &options).unwrap_err();
    let option = |error: Error| match error {
        Error::Option { option, .. } => option,
        other => panic!("{other}"),
    };
    assert_eq!(option(refused(ChatOptions { stop: vec![String::new()], ..greedy() })), "stop");
    assert_eq!(option(refused(ChatOptions { echo: true, ..greedy() })), "echo");
    assert_eq!(option(refused(ChatOptions { top_logprobs: 1, ..greedy() })), "top_logprobs");
    assert_eq!(option(refused(ChatOptions { top_logprobs: 21, logprobs: true, ..greedy() })), "top_logprobs");
    let unknown = [(TokenId(1 << 20), 1.0)].into();
    assert_eq!(option(refused(ChatOptions { logit_bias: unknown, ..greedy() })), "logit_bias");
    for options in [ChatOptions { top_k: Some(0), ..greedy() }, ChatOptions { min_p: 2.0, ..greedy() }] {
        assert!(matches!(refused(options), Error::Generate(GenerateError::Sampling(_))));
    }
    assert_eq!(llama.stats().admitted, 0);
}

#[test]
fn options_are_json() {
    let json = r#"{"top_k": 40, "stop": ["\n"], "logit_bias": {"7": -100.0}, "when_full": "refuse"}"#;
    let options: ChatOptions = serde_json::from_str(json).unwrap();
    assert_eq!((options.top_k, options.logit_bias[&TokenId(7)]), (Some(40), -100.0));
    let again = serde_json::from_str::<ChatOptions>(&serde_json::to_string(&options).unwrap()).unwrap();
    assert_eq!(again, options);
    assert_ne!(ChatOptions { cancel: Some(CancelToken::new()), ..greedy() }, greedy());
}

/// Unparks a thread, and counts how often.
struct Unpark(Thread, AtomicUsize);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.unpark();
    }
}

/// The smallest executor: polls, and sleeps until it is woken.
fn block_on(mut stream: ChatStream) -> (Heard, usize) {
    let unpark = Arc::new(Unpark(thread::current(), AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&unpark));
    let mut heard = Heard::default();
    loop {
        match poll(&mut stream, &mut Context::from_waker(&waker)) {
            Poll::Ready(Some(event)) => heard.hear(event.unwrap()),
            Poll::Ready(None) => return (heard, unpark.1.load(Ordering::Relaxed)),
            Poll::Pending => thread::park(),
        }
    }
}

#[cfg(feature = "futures")]
fn poll(stream: &mut ChatStream, context: &mut Context<'_>) -> Poll<Option<Result<StreamEvent, Error>>> {
    futures_core::Stream::poll_next(std::pin::Pin::new(stream), context)
}

#[cfg(not(feature = "futures"))]
fn poll(stream: &mut ChatStream, context: &mut Context<'_>) -> Poll<Option<Result<StreamEvent, Error>>> {
    stream.poll_next(context)
}

#[test]
fn an_executor_hears_the_same_and_is_woken_for_it() {
    let llama = llama();
    let expected = hear(llama.chat_stream(&dialog(), &greedy()).unwrap());
    let (heard, woken) = block_on(llama.chat_stream(&dialog(), &greedy()).unwrap());
    assert_eq!(heard, expected);
    assert!(woken > 0);
}
