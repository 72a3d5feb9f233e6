//! [`Answers`]: the answers of one call as they come, told apart by their place in it.
//!
//! There is one way from the engine's events to text: a stream is a call with one row, read event by event, and a call that waits for its
//! answers reads them all. Rows are read in the order of their events, not one after the other, so that a row ends where its stop
//! string comes, whichever row the caller asked for first.

use std::collections::VecDeque;
use std::task::{Context, Poll};
use std::time::Duration;

use llama_backend::TokenId;

use super::judge::Judge;
use super::release::{End, Release, Released};
use super::{RefusedPrompt, StreamEvent, StreamToken};
use crate::generate::{Event, FinishReason, Metrics, NewToken, PromptLogprobs, Submission, Usage};
use crate::options::{GenerationOptions, TokenChoice};
use crate::safety::{Judgement, Prompt};
use crate::sampler::Alternative;
use crate::tokenizer::{Tokenizer, TokenizerError};
use crate::{Error, Llama};

/// One prompt of a call.
#[derive(Debug)]
pub(crate) struct Row {
    /// `None` once it has ended.
    release: Option<Release>,
    /// The prompt's tokens that stand in front of the answer, until they are told.
    echo: Option<Vec<TokenId>>,
    /// The reason that counts instead of the engine's, which was not asked for an answer.
    reason: Option<FinishReason>,
    judgements: Vec<Judgement>,
    /// The message that it answers, where it is not to be kept as it was given.
    message: Option<String>,
    usage: Usage,
    metrics: Metrics,
    last_token_at: Duration,
}

/// A call's answers as they come.
#[derive(Debug)]
pub(crate) struct Answers {
    // Dropped first, so that the engine hears of it while it lives.
    submission: Submission,
    rows: Vec<Row>,
    ready: VecDeque<(usize, StreamEvent)>,
    /// The first prompt that was refused before it began.
    refused: Option<RefusedPrompt>,
    /// Keeps the engine alive.
    llama: Llama,
}

/// An answer that is complete.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) tokens: Vec<StreamToken>,
    pub(crate) finish_reason: FinishReason,
    pub(crate) judgements: Vec<Judgement>,
    pub(crate) usage: Usage,
    pub(crate) metrics: Metrics,
}

impl Answers {
    /// The answers to prompts of which those that are to be computed were submitted.
    pub(crate) fn new(
        llama: &Llama,
        prompts: &[Prompt],
        options: &GenerationOptions,
        submission: Submission,
    ) -> Result<Self, Error> {
        let rows = prompts.iter().map(|prompt| Row::new(llama, prompt, options)).collect();
        let refused = prompts.iter().enumerate().find_map(|(place, prompt)| {
            let judgements = || prompt.judgements.clone();
            prompt.refused.map(|finish_reason| RefusedPrompt {
                place,
                finish_reason,
                judgements: judgements(),
            })
        });
        let mut answers = Self { submission, rows, ready: VecDeque::new(), refused, llama: llama.clone() };
        for (place, prompt) in prompts.iter().enumerate() {
            if let Some(reason) = prompt.refused {
                let text = Prompt::refusal(reason).map(|text| StreamEvent::Text(text.to_owned()));
                answers.ready.extend(text.map(|text| (place, text)));
                answers.finish(place, reason);
            } else if !options.logprobs {
                answers.echo(place, None)?; // with logprobs, it waits for the prompt's
            }
        }
        Ok(answers)
    }

    /// The next event, and the place of its row in the call; `None` after the last row's last. Waits for it.
    pub(crate) fn next(&mut self) -> Option<Result<(usize, StreamEvent), Error>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            if self.is_complete() {
                return None;
            }
            let event = self.submission.recv();
            if let Err(error) = self.take(event) {
                return Some(Err(error));
            }
        }
    }

    /// As [`next`](Self::next), woken by the context's waker instead of waiting.
    pub(crate) fn poll_next(
        &mut self,
        context: &Context<'_>,
    ) -> Poll<Option<Result<(usize, StreamEvent), Error>>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if self.is_complete() {
                return Poll::Ready(None);
            }
            let Poll::Ready(event) = self.submission.poll_recv(context) else { return Poll::Pending };
            if let Err(error) = self.take(event) {
                return Poll::Ready(Some(Err(error)));
            }
        }
    }

    /// Waits for all, in the order of the call.
    pub(crate) fn wait(mut self) -> Result<Vec<Answer>, Error> {
        let mut answers: Vec<Answer> = self.rows.iter().map(|_| Answer::begun()).collect();
        while let Some(event) = self.next() {
            let (place, event) = event?;
            answers[place].take(event); // as many as rows
        }
        Ok(answers)
    }

    /// The message of a row where it is not to be kept as it was given.
    pub(crate) fn message(&self, place: usize) -> Option<&str> {
        self.rows.get(place).and_then(|row| row.message.as_deref())
    }

    /// The first prompt that was refused before it began.
    pub(crate) fn refused(&self) -> Option<&RefusedPrompt> {
        self.refused.as_ref()
    }

    fn is_complete(&self) -> bool {
        self.rows.iter().all(|row| row.release.is_none())
    }

    /// Takes an event of the engine's. After an error, every row has ended.
    fn take(&mut self, event: Option<(usize, Event)>) -> Result<(), Error> {
        let taken = match event {
            Some((place, event)) => self.take_event(place, event),
            None => Err(self.llama.engine_failure()),
        };
        if taken.is_err() {
            self.submission = Submission::default();
            self.rows.iter_mut().for_each(|row| row.release = None);
        }
        taken
    }

    fn take_event(&mut self, place: usize, event: Event) -> Result<(), Error> {
        let Some(row) = self.rows.get_mut(place) else { return Ok(()) };
        let Some(release) = row.release.as_mut() else { return Ok(()) }; // ended by a stop string or a guard
        match event {
            Event::Started { at, cached_tokens } => {
                (row.metrics.queue_time, row.metrics.cached_tokens) = (at, cached_tokens);
            }
            Event::PromptLogprobs(prompt) => self.echo(place, Some(prompt))?,
            Event::Token(token) => {
                row.usage.completion_tokens += 1;
                row.metrics.time_to_first_token.get_or_insert(token.at);
                row.last_token_at = token.at;
                let token = describe(&self.llama, token)?;
                let released = release.push(token)?;
                if let Some(reason) = self.tell(place, released) {
                    self.finish(place, reason);
                    self.submission.give_up(place);
                }
            }
            Event::Finished(reason) => {
                let reason = row.reason.filter(|_| reason == FinishReason::Length).unwrap_or(reason);
                if let Some(release) = row.release.take() {
                    let released = release.finish();
                    let ended = self.tell(place, released);
                    self.finish(place, ended.unwrap_or(reason));
                }
            }
            Event::Failed(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Tells the prompt, with its logprobs where they were asked for.
    fn echo(&mut self, place: usize, logprobs: Option<PromptLogprobs>) -> Result<(), Error> {
        let row = &mut self.rows[place]; // a row of the call
        let Some((prompt, release)) = row.echo.take().zip(row.release.as_mut()) else { return Ok(()) };
        let tokenizer = self.llama.tokenizer();
        let known =
            logprobs.into_iter().flat_map(|prompt| prompt.logprobs.into_iter().zip(prompt.alternatives));
        // The first token stands behind nothing.
        let known = [None].into_iter().chain(known.map(Some)).chain(std::iter::repeat(None));
        let token = |(id, known): (TokenId, Option<_>)| {
            let (logprob, alternatives) = known.unzip();
            let top_logprobs = choices(tokenizer, alternatives.unwrap_or_default())?;
            Ok(StreamToken { id, text: tokenizer.decode_one(id)?, logprob, top_logprobs })
        };
        let prompt: Result<_, TokenizerError> = prompt.into_iter().zip(known).map(token).collect();
        let released = release.echo(prompt?)?;
        self.tell(place, released);
        Ok(())
    }

    /// Tells what was released; gives why it ends the answer, if it does.
    fn tell(&mut self, place: usize, released: Released) -> Option<FinishReason> {
        self.rows[place].judgements.extend(released.judgements); // a row of the call
        if !released.text.is_empty() {
            self.ready.push_back((place, StreamEvent::Text(released.text)));
        }
        let tokens = released.tokens.into_iter().map(StreamEvent::Token);
        self.ready.extend(tokens.map(|token| (place, token)));
        released.end.map(|end| match end {
            End::StopString => FinishReason::StopString,
            End::Guarded => FinishReason::Guarded,
        })
    }

    fn finish(&mut self, place: usize, reason: FinishReason) {
        let row = &mut self.rows[place]; // a row of the call
        row.release = None;
        let finished = row.finished(reason);
        self.ready.push_back((place, finished));
    }
}

impl Row {
    fn new(llama: &Llama, prompt: &Prompt, options: &GenerationOptions) -> Self {
        let tokens = prompt.to_compute();
        let echo = tokens.filter(|_| options.echo);
        // The reference looks for EOS in the prompt too when it echoes, and cuts there.
        let eos_id = llama.tokenizer().eos_id();
        let eos = echo.and_then(|echo| echo.iter().position(|&id| id == eos_id));
        Self {
            release: tokens.map(|_| {
                let judge = Judge::new(llama.guards(), prompt);
                Release::new(llama.tokenizer(), options.stop.clone(), judge)
            }),
            echo: echo.map(|echo| echo[..eos.unwrap_or(echo.len())].to_vec()),
            reason: eos.map(|_| FinishReason::Stop),
            judgements: prompt.judgements.clone(),
            message: prompt.message(),
            usage: Usage { prompt_tokens: tokens.map_or(0, <[_]>::len), completion_tokens: 0 },
            metrics: Metrics::default(),
            last_token_at: Duration::ZERO,
        }
    }

    fn finished(&mut self, finish_reason: FinishReason) -> StreamEvent {
        let mut metrics = self.metrics;
        let first = metrics.time_to_first_token.unwrap_or_default();
        let decoding = self.last_token_at.saturating_sub(first).as_secs_f64();
        if self.usage.completion_tokens > 1 && decoding > 0.0 {
            metrics.tokens_per_second = Some((self.usage.completion_tokens - 1) as f64 / decoding);
        }
        let judgements = std::mem::take(&mut self.judgements);
        StreamEvent::Finished { finish_reason, judgements, usage: self.usage, metrics }
    }
}

impl Answer {
    pub(crate) fn take(&mut self, event: StreamEvent) {
        match event {
            StreamEvent::Text(text) => self.text.push_str(&text),
            StreamEvent::Token(token) => self.tokens.push(token),
            StreamEvent::Finished { finish_reason, judgements, usage, metrics } => {
                (self.finish_reason, self.judgements) = (finish_reason, judgements);
                (self.usage, self.metrics) = (usage, metrics);
            }
        }
    }

    pub(crate) fn begun() -> Self {
        Self {
            text: String::new(),
            tokens: Vec::new(),
            finish_reason: FinishReason::Length,
            judgements: Vec::new(),
            usage: Usage::default(),
            metrics: Metrics::default(),
        }
    }
}

/// A token in words.
fn describe(llama: &Llama, token: NewToken) -> Result<StreamToken, Error> {
    let tokenizer = llama.tokenizer();
    Ok(StreamToken {
        id: token.id,
        text: tokenizer.decode_one(token.id)?,
        logprob: token.logprob,
        top_logprobs: choices(tokenizer, token.alternatives)?,
    })
}

fn choices(
    tokenizer: &Tokenizer,
    alternatives: Vec<Alternative>,
) -> Result<Vec<TokenChoice>, TokenizerError> {
    let choice =
        |Alternative { id, logprob, .. }| Ok(TokenChoice { id, text: tokenizer.decode_one(id)?, logprob });
    alternatives.into_iter().map(choice).collect()
}
