//! Scores: how probable the model holds a text, which is what evaluations ask of it.
//!
//! The decision: a score is prompt logprobs and nothing else. A continuation is prefilled behind its prompt, and rows of logits are asked for where
//! its tokens are expected, so that whatever generation computes is what is scored, and a prompt that many continuations share is prefilled once.
//! The calls and their rules are those of EleutherAI's lm-evaluation-harness (`loglikelihood`, `loglikelihood_rolling`), whose numbers
//! they are to be compared with.

use std::ops::Range;

use llama_backend::TokenId;

use crate::generate::{Call, CancelToken, Event, PromptLogprobs, Request, WhenFull};
use crate::sampler::SamplingOptions;
use crate::{Error, Llama};

/// How probable the model holds some tokens, each behind all before it.
///
/// Scores of parts that follow each other are collected into the score of the whole.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Score {
    /// The tokens that were scored.
    pub tokens: Vec<TokenId>,
    /// log p of each under the model, natural.
    pub logprobs: Vec<f32>,
    /// Whether each is the most probable token at its place: what would have been generated at temperature 0.
    pub is_greedy: bool,
}

impl Score {
    /// The log-likelihood: the sum of the logprobs, in nats.
    #[must_use]
    pub fn logprob(&self) -> f64 {
        self.logprobs.iter().map(|&logprob| f64::from(logprob)).sum()
    }

    /// `exp(-logprob / tokens)`: among how many equally probable tokens the model would be as unsure; `None` where no token was scored.
    #[must_use]
    pub fn perplexity(&self) -> Option<f64> {
        let n_tokens = self.logprobs.len();
        (n_tokens > 0).then(|| (-self.logprob() / n_tokens as f64).exp())
    }
}

impl FromIterator<Score> for Score {
    fn from_iter<T: IntoIterator<Item = Score>>(parts: T) -> Self {
        let nothing = Score { tokens: Vec::new(), logprobs: Vec::new(), is_greedy: true };
        parts.into_iter().fold(nothing, |mut whole, part| {
            whole.tokens.extend(part.tokens);
            whole.logprobs.extend(part.logprobs);
            whole.is_greedy &= part.is_greedy;
            whole
        })
    }
}

/// How a text that is longer than the context is scored: in windows, each of which begins with BOS and is a prompt of its own.
///
/// Every token is scored once, in the first window that holds it; the tokens of a window that the one before it has scored are there to be
/// read. The smaller the stride, the more of the text each token is scored behind, and the more there is to compute (the sliding window of
/// [Hugging Face's page on perplexity](https://huggingface.co/docs/transformers/perplexity), whose first token, without BOS, has no score).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WindowOptions {
    /// Tokens of a window, BOS included: 2 at least, `max_seq_len` at most. `None`, the default: `max_seq_len`.
    pub context: Option<usize>,
    /// How many tokens further each window begins than the one before: 1 at least, as many as a window holds beside BOS at most. There, windows do not
    /// overlap; each token is then behind those of its own window alone. `None`, the default: half of the context.
    pub stride: Option<usize>,
}

impl Llama {
    /// How probable a continuation is behind a prompt (lm-evaluation-harness' `loglikelihood`).
    ///
    /// ```no_run
    /// # let llama = llama_core::Llama::build("llama-2-7b", "tokenizer.model", 512, 8)?;
    /// let paris = llama.score("Q: What is the capital of France?\nA:", " Paris")?;
    /// let lyon = llama.score("Q: What is the capital of France?\nA:", " Lyon")?;
    /// assert!(paris.logprob() > lyon.logprob());
    /// # Ok::<(), llama_core::Error>(())
    /// ```
    ///
    /// Both texts are encoded together, behind BOS, as the text would be that they make: a token may reach across the border. The prompt is what
    /// that has in common with the prompt encoded alone, without white space at its end; all that follows is scored. So white space at the
    /// prompt's end is the continuation's, as in lm-evaluation-harness (`"A: "` and `"Paris"` are `"A:"` and `" Paris"`, since SentencePiece joins a
    /// space to what follows), and so is a token that reaches across.
    ///
    /// A guarded model has no such call: nothing is generated that could be judged, and the logprobs of a text that a guard refuses are not told.
    ///
    /// # Errors
    ///
    /// As [`score_batch`](Self::score_batch).
    pub fn score(&self, prompt: &str, continuation: &str) -> Result<Score, Error> {
        Ok(self.score_batch(&[(prompt, continuation)])?.into_iter().collect())
    }

    /// Scores each continuation behind its prompt, as [`score`](Self::score) does: pairs of prompt and continuation. Those with one prompt prefill it once.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`] without pairs, [`Error::EmptyContinuation`] for a continuation that adds no token to its prompt, [`Error::ContextOverflow`] for a
    /// pair of more tokens than `max_seq_len`, [`Error::Guarded`] for a guarded model: all before anything is computed, for the whole call.
    /// [`Error::Generate`] when the model failed.
    pub fn score_batch(&self, pairs: &[(impl AsRef<str>, impl AsRef<str>)]) -> Result<Vec<Score>, Error> {
        let encode = |(prompt, continuation): &(_, _)| {
            self.encode_pair(AsRef::as_ref(prompt), AsRef::as_ref(continuation))
        };
        self.score_tokens(&pairs.iter().map(encode).collect::<Vec<_>>())
    }

    /// Scores each list of tokens behind its prompt's: pairs of prompt and continuation. A prompt begins with BOS, usually.
    ///
    /// # Errors
    ///
    /// As [`score_batch`](Self::score_batch); [`Error::EmptyPrompt`] for a prompt without tokens, [`Error::TokenOutOfRange`] for a token that the model does
    /// not have.
    pub fn score_tokens(&self, pairs: &[(Vec<TokenId>, Vec<TokenId>)]) -> Result<Vec<Score>, Error> {
        if !self.guards().is_empty() {
            return Err(Error::Guarded { call: "score" });
        }
        if pairs.is_empty() {
            return Err(Error::Empty { what: "pairs of prompt and continuation" });
        }
        let requests = pairs.iter().enumerate().map(|(row, (prompt, continuation))| {
            if prompt.is_empty() {
                return Err(Error::EmptyPrompt { row });
            }
            if continuation.is_empty() {
                return Err(Error::EmptyContinuation { row });
            }
            let whole = [&prompt[..], continuation].concat();
            self.check_prompt(row, &whole, 0)?;
            Ok(self.score_request(row, &whole, prompt.len()))
        });
        let call = Call {
            requests: requests.collect::<Result<_, _>>()?,
            cancel: CancelToken::new(),
            deadline: None,
            when_full: WhenFull::Wait,
        };
        let submission = self.engine().submit(call)?;
        let mut told: Vec<Option<PromptLogprobs>> = pairs.iter().map(|_| None).collect();
        while told.iter().any(Option::is_none) {
            match submission.recv() {
                Some((row, Event::PromptLogprobs(logprobs))) => told[row] = Some(logprobs), // a row of the call
                Some((_, Event::Failed(error))) => return Err(error.into()),
                Some((_, Event::Started { .. } | Event::Token(_) | Event::Finished(_))) => {}
                None => return Err(self.engine_failure()),
            }
        }
        let scores = pairs.iter().zip(told.into_iter().flatten()); // none is missing
        let score = |((_, tokens), told): (&(_, Vec<TokenId>), PromptLogprobs)| {
            let PromptLogprobs { logprobs, is_greedy, .. } = told;
            Score { tokens: tokens.clone(), logprobs, is_greedy }
        };
        Ok(scores.map(score).collect())
    }

    /// Scores a whole text, window by window (lm-evaluation-harness' `loglikelihood_rolling`): what perplexity is made of.
    ///
    /// ```no_run
    /// # let llama = llama_core::Llama::build("llama-2-7b", "tokenizer.model", 4096, 1)?;
    /// use llama_core::{Score, WindowOptions};
    ///
    /// let windows = llama.score_text(&std::fs::read_to_string("book.txt")?, WindowOptions::default())?;
    /// println!("{} windows", windows.len());
    /// let score: Score = windows.collect::<Result<_, _>>()?;
    /// println!("perplexity {:.2?} of {} tokens", score.perplexity(), score.tokens.len());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Option`] for windows out of their range, [`Error::Empty`] for a text without tokens, [`Error::Guarded`] for a guarded model. What goes wrong
    /// later comes as an item.
    pub fn score_text(&self, text: &str, options: WindowOptions) -> Result<TextScores, Error> {
        if !self.guards().is_empty() {
            return Err(Error::Guarded { call: "score_text" });
        }
        let limit = self.max_seq_len();
        let context = options.context.unwrap_or(limit);
        if !(2..=limit).contains(&context) {
            return Err(Error::option("context", context, format!("2 to max_seq_len, which is {limit}")));
        }
        let stride = options.stride.unwrap_or(context / 2);
        if !(1..context).contains(&stride) {
            let expected = format!("1 to {}: a window of {context} tokens without BOS", context - 1);
            return Err(Error::option("stride", stride, expected));
        }
        let tokens = self.tokenizer().encode(text);
        if tokens.is_empty() {
            return Err(Error::Empty { what: "tokens" });
        }
        Ok(TextScores {
            llama: self.clone(),
            windows: Windows { n_tokens: tokens.len(), size: context - 1, stride, next: 0 },
            tokens,
            ready: Vec::new().into_iter(),
        })
    }

    /// The tokens of a prompt and those of its continuation.
    fn encode_pair(&self, prompt: &str, continuation: &str) -> (Vec<TokenId>, Vec<TokenId>) {
        if continuation.is_empty() {
            return (self.tokenizer().encode_prompt(prompt), Vec::new());
        }
        let alone = self.tokenizer().encode_prompt(prompt.trim_end());
        let mut whole = self.tokenizer().encode_prompt(&[prompt, continuation].concat());
        let border = alone.iter().zip(&whole).take_while(|(a, b)| a == b).count();
        let scored = whole.split_off(border);
        (whole, scored)
    }

    /// Asks for the logprobs of a prompt's tokens from one of them on, and for no new token.
    fn score_request(&self, place: usize, tokens: &[TokenId], from: usize) -> Request {
        Request {
            place,
            prompt: tokens.into(),
            max_gen_len: 0,
            eos_id: self.tokenizer().eos_id(),
            sampling: SamplingOptions::default(),
            seed: 0,
            row: 0,
            logprobs: false,
            top_logprobs: 0,
            prompt_logprobs: Some(from),
        }
    }
}

/// The scores of a text's windows, in order: an iterator that computes a batch of them when it has none left.
#[derive(Debug)]
pub struct TextScores {
    llama: Llama,
    tokens: Vec<TokenId>,
    windows: Windows,
    ready: std::vec::IntoIter<Score>,
}

impl Iterator for TextScores {
    type Item = Result<Score, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(score) = self.ready.next() {
            return Some(Ok(score));
        }
        let bos_id = self.llama.tokenizer().bos_id();
        let pair = |window: Window| {
            let read = self.tokens[window.start..window.scored.start].iter();
            let prompt = [bos_id].iter().chain(read).copied().collect();
            (prompt, self.tokens[window.scored].to_vec())
        };
        // As many as run at a time: more would take memory, and be no faster.
        let pairs: Vec<_> = self.windows.by_ref().take(self.llama.stats().slots).map(pair).collect();
        if pairs.is_empty() {
            return None;
        }
        match self.llama.score_tokens(&pairs) {
            Ok(scores) => {
                self.ready = scores.into_iter();
                self.ready.next().map(Ok)
            }
            Err(error) => {
                self.windows.next = self.tokens.len();
                Some(Err(error))
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.ready.len() + self.windows.len();
        (left, Some(left))
    }
}

impl ExactSizeIterator for TextScores {}

/// A window of a text: tokens from `start` on, of which those before `scored` are read only.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Window {
    start: usize,
    scored: Range<usize>,
}

/// The windows of a text.
#[derive(Debug, Clone)]
struct Windows {
    n_tokens: usize,
    /// Tokens of a window, without BOS.
    size: usize,
    stride: usize,
    /// The first token that no window has scored.
    next: usize,
}

impl Iterator for Windows {
    type Item = Window;

    fn next(&mut self) -> Option<Window> {
        if self.next >= self.n_tokens {
            return None;
        }
        // The first window is scored as a whole, each other where it reaches further: by a stride, as long as there is text.
        let start = if self.next == 0 { 0 } else { self.next + self.stride - self.size };
        let scored = self.next..(start + self.size).min(self.n_tokens);
        self.next = scored.end;
        Some(Window { start, scored })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.n_tokens - self.next.min(self.n_tokens);
        let first = if self.next == 0 { self.size } else { self.stride };
        let n = usize::from(left > 0) + left.saturating_sub(first).div_ceil(self.stride);
        (n, Some(n))
    }
}

impl ExactSizeIterator for Windows {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn of_no_tokens_there_is_no_perplexity() {
        let part = |logprobs: &[f32]| Score {
            tokens: vec![TokenId(3); logprobs.len()],
            logprobs: logprobs.to_vec(),
            is_greedy: true,
        };
        let nothing: Score = [].into_iter().collect();
        assert_eq!((nothing.logprob(), nothing.perplexity()), (0.0, None));
        let whole: Score = [part(&[-1.0]), part(&[]), part(&[-3.0])].into_iter().collect();
        assert!((whole.perplexity().unwrap() - 2f64.exp()).abs() < 1e-12);
    }

    #[test]
    fn windows_are_those_of_the_page_on_perplexity() {
        let windows =
            |n_tokens, size, stride| Windows { n_tokens, size, stride, next: 0 }.collect::<Vec<_>>();
        let window = |start, scored| Window { start, scored };
        assert_eq!(windows(10, 4, 2), [window(0, 0..4), window(2, 4..6), window(4, 6..8), window(6, 8..10)]);
        assert_eq!(windows(5, 4, 3), [window(0, 0..4), window(3, 4..5)]);
        assert_eq!(windows(9, 4, 4), [window(0, 0..4), window(4, 4..8), window(8, 8..9)]);
        assert_eq!(windows(3, 4, 1), [window(0, 0..3)]);
    }

    proptest! {
        #[test]
        fn any_stride_scores_each_token_once(n_tokens in 1usize..400, size in 1usize..60, share in 0usize..60) {
            let stride = 1 + share % size;
            let mut windows = Windows { n_tokens, size, stride, next: 0 };
            let (mut scored, mut left) = (0, windows.len());
            for (i, window) in windows.by_ref().enumerate() {
                prop_assert_eq!(window.start, i * stride, "a stride further each");
                prop_assert_eq!(window.scored.start, scored, "where the one before it ended");
                prop_assert!(window.scored.end > scored && window.scored.end <= window.start + size);
                scored = window.scored.end;
                left -= 1;
            }
            prop_assert_eq!((scored, left), (n_tokens, 0));
        }
    }
}
