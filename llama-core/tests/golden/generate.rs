//! The calls of a generate_* golden file, asked of a model however it was built.
//!
//! Where we differ from the reference on purpose, [`RULES`] says so: a rule finds the cases that it applies to from their arguments, and asserts what
//! we do instead. A case to which no rule applies is compared with what the reference answered, to the letter.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use std::path::{Path, PathBuf};

use crate::golden::{Check, Golden, close, same};
use llama_backend::testing::Oracle;
use llama_core::{
    ChatOptions, ChatPrediction, Dialog, Error, FinishReason, GenerationOptions, Llama, LlamaBuilder,
    Message, REFUSAL, TokenId, Usage, checkpoint,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    id: String,
    op: String,
    max_seq_len: usize,
    max_batch_size: usize,
    prompts: Option<Vec<String>>,
    dialogs: Option<Vec<Vec<serde_json::Value>>>,
    prompt_tokens: Option<Vec<Vec<u32>>>,
    temperature: f64,
    top_p: f64,
    max_gen_len: Option<i64>,
    #[serde(default)]
    logprobs: bool,
    #[serde(default)]
    echo: bool,
    expect: Expect,
}

#[derive(Deserialize)]
struct Expect {
    prompt_tokens: Option<Vec<Vec<u32>>>,
    out_tokens: Option<Vec<Vec<u32>>>,
    out_logprobs: Option<Vec<Vec<f32>>>,
    result: Option<Vec<Prediction>>,
    error: Option<ReferenceError>,
}

#[derive(Deserialize)]
struct ReferenceError {
    r#type: String,
    message: String,
}

#[derive(Deserialize)]
struct Prediction {
    generation: Generation,
    tokens: Option<Vec<String>>,
    logprobs: Option<Vec<f32>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Generation {
    Text(String),
    Message(Message),
}

impl Prediction {
    fn text(&self) -> &str {
        match &self.generation {
            Generation::Text(text) => text,
            Generation::Message(message) => &message.content,
        }
    }
}

/// A difference from the reference: to which cases it applies, and what must hold instead.
struct Rule {
    what: &'static str,
    applies: fn(&Case, &Calls) -> bool,
    instead: fn(&Case, &Calls) -> Check,
}

/// In the order in which they are tried; the first that applies is asserted, for the whole case.
const RULES: &[Rule] = &[
    Rule {
        what: "a prompt that fills the context is an error that names row, prompt and limit; max_gen_len 0 scores it",
        applies: |case, calls| !case.fits(calls) && case.expect.error.is_none(),
        instead: overflow_is_an_error_and_the_others_answer,
    },
    Rule {
        what: "more rows than max_batch_size wait their turn",
        applies: |case, calls| {
            case.fits(calls) && case.rows(calls) > case.max_batch_size && case.error("AssertionError")
        },
        instead: each_row_answers_as_it_does_alone,
    },
    Rule {
        what: "a dialog with a special tag costs nothing: no tokens, no logprobs, no usage, no limit",
        applies: |case, calls| {
            case.fits(calls) && case.dialogs().iter().any(|dialog| dialog.special_tag().is_some())
        },
        instead: refused_rows_are_empty_and_the_others_as_the_reference,
    },
    Rule {
        what: "prompt logprobs are shifted rightly where no row has room to generate",
        applies: |case, calls| case.logprobs && case.echo && case.reference_does_not_shift(calls),
        instead: logprobs_are_shifted,
    },
];

/// A model under test, and the oracle that rules are checked with.
struct Calls {
    llama: Llama,
    checkpoint: PathBuf,
}

impl Calls {
    /// log p(token i | tokens before i), 0 for the first, by the naive forward pass.
    fn score(&self, tokens: &[TokenId]) -> Vec<f32> {
        let weights = checkpoint::open(&self.checkpoint).unwrap().weights();
        let rows = Oracle::new(&*weights).unwrap().logits(tokens, 0);
        let scores = rows.iter().zip(&tokens[1..]).map(|(row, next)| {
            let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            (f64::from(row[next.0 as usize]) - sum.ln()) as f32
        });
        std::iter::once(0.0).chain(scores).collect()
    }
}

impl Case {
    fn options(&self) -> GenerationOptions {
        GenerationOptions {
            temperature: self.temperature,
            top_p: self.top_p,
            max_gen_len: self.max_gen_len.map(|len| usize::try_from(len).unwrap()),
            logprobs: self.logprobs,
            echo: self.echo,
            ..Default::default()
        }
    }

    fn chat_options(&self) -> ChatOptions {
        ChatOptions { echo: false, ..self.options() }
    }

    /// The dialogs, all of which are valid; none for the other calls.
    fn dialogs(&self) -> Vec<Dialog> {
        self.try_dialogs().unwrap_or_default()
    }

    fn try_dialogs(&self) -> Result<Vec<Dialog>, serde_json::Error> {
        self.dialogs.iter().flatten().map(|dialog| serde_json::from_value(dialog.clone().into())).collect()
    }

    /// The tokens of each prompt; `None` for a refused dialog.
    fn prompt_tokens(&self, calls: &Calls) -> Vec<Option<Vec<TokenId>>> {
        let tokenizer = calls.llama.tokenizer();
        if let Some(tokens) = &self.prompt_tokens {
            return tokens.iter().map(|row| Some(row.iter().copied().map(TokenId).collect())).collect();
        }
        if let Some(prompts) = &self.prompts {
            return prompts.iter().map(|prompt| Some(tokenizer.encode_prompt(prompt))).collect();
        }
        self.dialogs().iter().map(|dialog| tokenizer.encode_dialog(dialog).ok()).collect()
    }

    fn rows(&self, calls: &Calls) -> usize {
        self.prompt_tokens(calls).len()
    }

    fn error(&self, r#type: &str) -> bool {
        self.expect.error.as_ref().is_some_and(|error| error.r#type == r#type)
    }

    fn lens(&self, calls: &Calls) -> Vec<usize> {
        self.prompt_tokens(calls).iter().flatten().map(Vec::len).collect()
    }

    fn max_gen_len(&self) -> usize {
        self.options().max_gen_len.unwrap_or(self.max_seq_len - 1)
    }

    /// Whether every prompt that is not refused leaves room for what was asked.
    fn fits(&self, calls: &Calls) -> bool {
        let room = usize::from(self.max_gen_len() > 0);
        self.lens(calls).iter().all(|len| len + room <= self.max_seq_len)
    }

    /// The error that the call gives, if it gives one.
    fn call(&self, calls: &Calls) -> Option<Error> {
        let llama = &calls.llama;
        match (&self.prompts, &self.prompt_tokens) {
            (Some(prompts), _) => llama.text_completion(prompts, &self.options()).err(),
            (_, Some(rows)) => {
                let prompts: Vec<_> = rows.iter().map(|row| ids(row)).collect();
                llama.generate(&prompts, &self.options()).err()
            }
            _ => llama.chat_completion(&self.dialogs(), &self.chat_options()).err(),
        }
    }

    /// Whether the reference's total length is its shortest prompt's: then it takes the branch that does not shift.
    fn reference_does_not_shift(&self, calls: &Calls) -> bool {
        let lens = self.lens(calls);
        let (Some(min), Some(max)) = (lens.iter().min(), lens.iter().max()) else { return false };
        *min == self.max_seq_len.min(self.max_gen_len() + max)
    }
}

fn ids(row: &[u32]) -> Vec<TokenId> {
    row.iter().copied().map(TokenId).collect()
}

fn generate(calls: &Calls, prompts: &[Vec<TokenId>], options: &GenerationOptions) -> Result<Rows, String> {
    calls.llama.generate(prompts, options).map_err(|error| error.to_string())
}

type Rows = (Vec<Vec<TokenId>>, Option<Vec<Vec<f32>>>);

/// What the reference returned as the tokens of row `i`.
fn out_tokens(case: &Case, i: usize) -> Result<Vec<TokenId>, String> {
    let row = case.expect.out_tokens.as_ref().and_then(|rows| rows.get(i));
    row.map(|row| ids(row)).ok_or_else(|| format!("the golden case has no row {i}"))
}

fn each_row_answers_as_it_does_alone(case: &Case, calls: &Calls) -> Check {
    let prompts: Vec<_> = case.prompt_tokens(calls).into_iter().flatten().collect();
    let options = GenerationOptions { logprobs: true, ..case.options() };
    let (tokens, logprobs) = generate(calls, &prompts, &options)?;
    same("rows", &prompts.len(), &tokens.len())?;
    for (i, prompt) in prompts.into_iter().enumerate() {
        let (alone, alone_logprobs) = generate(calls, &[prompt], &options)?;
        same(&format!("row {i}"), &alone[0], &tokens[i])?;
        let found = logprobs.as_ref().map(|rows| &*rows[i]);
        close(
            &format!("logprobs of row {i}"),
            &alone_logprobs.unwrap_or_default()[0],
            found.unwrap_or_default(),
        )?;
    }
    Ok(())
}

fn overflow_is_an_error_and_the_others_answer(case: &Case, calls: &Calls) -> Check {
    let prompts = case.prompt_tokens(calls);
    let limit = case.max_seq_len;
    let full = |prompt: &Vec<TokenId>| prompt.len() == limit;
    let first = prompts.iter().position(|prompt| prompt.as_ref().is_some_and(full));
    match case.call(calls) {
        Some(Error::ContextOverflow { row, prompt, limit: found, .. }) => {
            same("row, prompt, limit", &(first, limit, limit), &(Some(row), prompt, found))?;
        }
        Some(error) => return Err(error.to_string()),
        None => return Err("a prompt without room was accepted".to_owned()),
    }
    for (i, prompt) in prompts.iter().enumerate() {
        let Some(prompt) = prompt else { continue }; // refused: another rule's
        let expected = out_tokens(case, i)?;
        // The reference generates nothing after a full prompt; we score it when that is what is asked for.
        let options = match full(prompt) {
            true => GenerationOptions { max_gen_len: Some(0), ..case.options() },
            false => case.options(),
        };
        let (tokens, logprobs) = generate(calls, std::slice::from_ref(prompt), &options)?;
        same(&format!("row {i}"), &expected, &tokens[0])?;
        let Some(logprobs) = logprobs else { continue };
        let expected = match &case.expect.out_logprobs {
            Some(rows) if !case.reference_does_not_shift(calls) => rows[i].clone(),
            _ if case.echo => calls.score(&expected),
            _ => Vec::new(),
        };
        close(&format!("logprobs of row {i}"), &expected, &logprobs[0])?;
    }
    Ok(())
}

fn logprobs_are_shifted(case: &Case, calls: &Calls) -> Check {
    let prompts: Vec<_> = case.prompt_tokens(calls).into_iter().flatten().collect();
    let (tokens, logprobs) = generate(calls, &prompts, &case.options())?;
    for (i, logprobs) in logprobs.into_iter().flatten().enumerate() {
        same(&format!("row {i}"), &out_tokens(case, i)?, &tokens[i])?;
        close(&format!("logprobs of row {i}"), &calls.score(&tokens[i]), &logprobs)?;
    }
    Ok(())
}

fn refused_rows_are_empty_and_the_others_as_the_reference(case: &Case, calls: &Calls) -> Check {
    let dialogs = case.dialogs();
    let chat = |dialogs: &[Dialog]| {
        calls.llama.chat_completion(dialogs, &case.chat_options()).map_err(|error| error.to_string())
    };
    let answers = chat(&dialogs)?;
    same("answers", &dialogs.len(), &answers.len())?;
    for (i, (dialog, answer)) in dialogs.iter().zip(&answers).enumerate() {
        if dialog.special_tag().is_none() {
            // Where the reference gave up on the whole call, for a dialog that is refused: as it answers alone.
            match &case.expect.result {
                Some(expected) => check_answer(case, &expected[i], answer)?,
                None => same("answer", &chat(std::slice::from_ref(dialog))?[0], answer)?,
            }
            continue;
        }
        same("generation", &Message::assistant(REFUSAL), &answer.generation)?;
        if let Some(expected) = &case.expect.result {
            same("text", expected[i].text(), &*answer.generation.content)?;
        }
        same("finish reason", &FinishReason::Refused, &answer.finish_reason)?;
        same("usage", &Usage::default(), &answer.usage)?;
        same("tokens", &case.logprobs.then(Vec::new), &answer.tokens)?;
        same("logprobs", &case.logprobs.then(Vec::new), &answer.logprobs)?;
    }
    Ok(())
}

fn check_answer(case: &Case, expected: &Prediction, answer: &ChatPrediction) -> Check {
    same("generation", &Message::assistant(expected.text()), &answer.generation)?;
    check_lists(case, expected, answer.tokens.as_ref(), answer.logprobs.as_ref())
}

fn check_lists(
    case: &Case,
    expected: &Prediction,
    tokens: Option<&Vec<String>>,
    logprobs: Option<&Vec<f32>>,
) -> Check {
    same("tokens", &expected.tokens.as_ref(), &tokens)?;
    same("logprobs asked for", &case.logprobs, &logprobs.is_some())?;
    match (&expected.logprobs, logprobs) {
        (Some(expected), Some(found)) => close("logprobs", expected, found),
        _ => Ok(()),
    }
}

fn check_equal(case: &Case, calls: &Calls) -> Check {
    let prompts: Vec<_> = case.prompt_tokens(calls).into_iter().flatten().collect();
    if let Some(expected) = &case.expect.prompt_tokens {
        same("prompt tokens", &expected.iter().map(|row| ids(row)).collect(), &prompts)?;
    }
    let (tokens, logprobs) = generate(calls, &prompts, &case.options())?;
    let expected = case.expect.out_tokens.as_ref().ok_or("the golden case has no out_tokens")?;
    same("tokens", &expected.iter().map(|row| ids(row)).collect(), &tokens)?;
    same("logprobs asked for", &case.logprobs, &logprobs.is_some())?;
    if let (Some(expected), Some(found)) = (&case.expect.out_logprobs, &logprobs) {
        for (i, (expected, found)) in expected.iter().zip(found).enumerate() {
            close(&format!("logprobs of row {i}"), expected, found)?;
        }
    }
    let Some(expected) = &case.expect.result else { return Ok(()) };
    if let Some(prompts) = &case.prompts {
        let texts =
            calls.llama.text_completion(prompts, &case.options()).map_err(|error| error.to_string())?;
        same("texts", &expected.len(), &texts.len())?;
        for (text, expected) in texts.iter().zip(expected) {
            same("generation", expected.text(), &text.generation)?;
            check_lists(case, expected, text.tokens.as_ref(), text.logprobs.as_ref())?;
        }
    } else {
        let (dialogs, options) = (case.dialogs(), case.chat_options());
        let answers = calls.llama.chat_completion(&dialogs, &options).map_err(|error| error.to_string())?;
        same("answers", &expected.len(), &answers.len())?;
        for (answer, expected) in answers.iter().zip(expected) {
            check_answer(case, expected, answer)?;
        }
    }
    Ok(())
}

/// What the reference refuses, we refuse: by a typed error, or by a type that cannot hold it.
fn check_refused(case: &Case, calls: &Calls, error: &ReferenceError) -> Check {
    if case.max_gen_len.is_some_and(|len| len < 0) {
        return Ok(()); // a usize
    }
    if case.try_dialogs().is_err() {
        return Ok(()); // a Dialog that cannot be made; which error it is, the dialogs' golden files say
    }
    let reference = format!("the reference says {} {:?}", error.r#type, error.message);
    let found = case.call(calls).ok_or_else(|| format!("accepted, where {reference}"))?;
    let as_expected = match error.r#type.as_str() {
        // A message names batch and limit; the assertion on a prompt's length has none.
        "AssertionError" if error.message.is_empty() => {
            matches!(found, Error::ContextOverflow { prompt, limit, .. } if prompt > limit)
        }
        "AssertionError" => matches!(found, Error::ContextOverflow { .. }),
        "ValueError" => matches!(found, Error::Empty { .. }),
        "RuntimeError" => matches!(found, Error::EmptyPrompt { .. } | Error::Generate(_)),
        _ => false,
    };
    if as_expected { Ok(()) } else { Err(format!("{found}, where {reference}")) }
}

/// What a case's model is built with: `max_seq_len`, `max_batch_size`.
pub(crate) type Limits = (usize, usize);

/// A builder for the cases' models, but for the engine.
pub(crate) fn builder(checkpoint: &Path, (max_seq_len, max_batch_size): Limits) -> LlamaBuilder {
    Llama::builder()
        .checkpoint(checkpoint)
        .tokenizer(checkpoint.join("tokenizer.model"))
        .max_seq_len(max_seq_len)
        .max_batch_size(max_batch_size)
}

/// Asks every case of the models that `engine` makes of builders. One model at a time is there.
pub(crate) fn check(
    golden: &Golden,
    checkpoint: &Path,
    note: &str,
    engine: impl Fn(LlamaBuilder) -> LlamaBuilder,
) {
    let mut built: Option<(Limits, Calls)> = None;
    let mut by_rule = vec![Vec::new(); RULES.len()];
    golden.check_where(
        "cases",
        note,
        |_| true,
        |case| {
            let case: Case = serde_json::from_value(case.clone()).map_err(|error| error.to_string())?;
            let limits = (case.max_seq_len, case.max_batch_size);
            let calls = match built.take().filter(|(of, _)| *of == limits) {
                Some((_, calls)) => calls,
                None => {
                    let llama = engine(builder(checkpoint, limits)).build().unwrap();
                    Calls { llama, checkpoint: checkpoint.to_owned() }
                }
            };
            let checked =
                match (RULES.iter().position(|rule| (rule.applies)(&case, &calls)), &case.expect.error) {
                    (Some(i), _) => {
                        by_rule[i].push(case.id.clone());
                        (RULES[i].instead)(&case, &calls)
                    }
                    (None, Some(error)) => check_refused(&case, &calls, error),
                    (None, None) => check_equal(&case, &calls),
                };
            built = Some((limits, calls));
            checked.map_err(|wrong| format!("{} {}: {wrong}", case.op, case.id))
        },
    );
    let file = &golden.name;
    for (rule, cases) in RULES.iter().zip(by_rule) {
        println!("{file} ({note}): {} differ on purpose, {}: {}", cases.len(), rule.what, cases.join(", "));
    }
}
