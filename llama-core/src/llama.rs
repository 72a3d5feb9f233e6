//! [`Llama`]: a loaded model, with the three calls of Meta's reference (`llama/generation.py`).

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use llama_backend::{ModelConfig, TokenId};

use crate::generate::{Engine, Event, FinishReason, GenerateError, Request, Submission, Usage};
use crate::options::{
    ChatOptions, ChatPrediction, CompletionOptions, CompletionPrediction, GenerationOptions,
};
use crate::sampler::SamplingOptions;
use crate::stream::ChatStream;
use crate::tokenizer::Tokenizer;
use crate::{Dialog, Error, LlamaBuilder, Message};

/// A Llama 2 model that is loaded and ready. Cloning shares it; any number of threads may call it at once, and their prompts
/// run in the same forward passes.
///
/// ```no_run
/// use llama_core::{ChatOptions, Dialog, Llama};
///
/// let llama = Llama::build("llama-2-7b-chat", "tokenizer.model", 512, 8)?;
/// let dialogs = [Dialog::new("What is the capital of France?")];
/// let answers = llama.chat_completion(&dialogs, &ChatOptions::default())?;
/// println!("{}", answers[0].generation.content);
/// # Ok::<(), llama_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Llama {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    engine: Engine,
    tokenizer: Tokenizer,
    config: ModelConfig,
    max_seq_len: usize,
    seed: u64,
}

/// What came of one prompt.
struct Row {
    prompt: Vec<TokenId>,
    prompt_logprobs: Vec<f32>,
    tokens: Vec<TokenId>,
    logprobs: Vec<f32>,
    finish_reason: FinishReason,
}

impl Row {
    fn usage(&self) -> Usage {
        Usage { prompt_tokens: self.prompt.len(), completion_tokens: self.tokens.len() }
    }

    /// The prompt in front of the answer, cut at the first EOS: the reference looks for EOS in the prompt too when it echoes.
    fn echo(&mut self, eos_id: TokenId) {
        let mut tokens = self.prompt.clone();
        tokens.append(&mut self.tokens);
        self.logprobs.splice(0..0, self.prompt_logprobs.drain(..));
        if let Some(eos) = tokens.iter().position(|&id| id == eos_id) {
            tokens.truncate(eos);
            self.logprobs.truncate(eos);
            self.finish_reason = FinishReason::Stop;
        }
        self.tokens = tokens;
    }
}

impl Llama {
    /// Loads a checkpoint onto the default backend (the reference's `Llama.build`). For more choices see
    /// [`builder`](Self::builder).
    ///
    /// `ckpt_dir` may also be a GGUF file, and so may `tokenizer_path`. `max_seq_len` is how many tokens prompt and answer may have together, `max_batch_size` how many prompts run at a time.
    ///
    /// # Errors
    ///
    /// See [`LlamaBuilder::build`].
    pub fn build(
        ckpt_dir: impl AsRef<Path>,
        tokenizer_path: impl AsRef<Path>,
        max_seq_len: usize,
        max_batch_size: usize,
    ) -> Result<Self, Error> {
        Self::builder()
            .checkpoint(ckpt_dir)
            .tokenizer(tokenizer_path)
            .max_seq_len(max_seq_len)
            .max_batch_size(max_batch_size)
            .build()
    }

    /// A builder with every choice at its default.
    #[must_use]
    pub fn builder() -> LlamaBuilder {
        LlamaBuilder::default()
    }

    pub(crate) fn new(
        engine: Engine,
        tokenizer: Tokenizer,
        config: ModelConfig,
        max_seq_len: usize,
        seed: u64,
    ) -> Self {
        Self { inner: Arc::new(Inner { engine, tokenizer, config, max_seq_len, seed }) }
    }

    /// The shape of the model.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.inner.config
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.inner.tokenizer
    }

    /// Tokens that prompt and answer may have together.
    #[must_use]
    pub fn max_seq_len(&self) -> usize {
        self.inner.max_seq_len
    }

    /// Answers each dialog as the assistant (the reference's `chat_completion`).
    ///
    /// A dialog with one of the format's special tags is refused: its answer is [`llama_dialog::REFUSAL`] with
    /// [`FinishReason::Refused`], it is never tokenised, and costs nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`] without dialogs, [`Error::ContextOverflow`] for a dialog that leaves no room to answer: both before
    /// anything is computed, for the whole call. [`Error::Generate`] when an answer could not be completed.
    pub fn chat_completion(
        &self,
        dialogs: &[Dialog],
        options: &ChatOptions,
    ) -> Result<Vec<ChatPrediction>, Error> {
        if dialogs.is_empty() {
            return Err(Error::Empty { what: "dialogs" });
        }
        let prompts: Vec<Option<Vec<TokenId>>> =
            dialogs.iter().map(|dialog| self.encode_dialog(dialog)).collect();
        let rows = self.run(prompts.iter().map(Option::as_deref), &options.into())?;
        rows.into_iter()
            .map(|row| match row {
                Some(row) => self.chat_prediction(row, options.logprobs),
                None => Ok(refusal(options.logprobs)),
            })
            .collect()
    }

    /// Answers a dialog as [`chat_completion`](Self::chat_completion) does, and gives the answer as it comes.
    ///
    /// # Errors
    ///
    /// As [`chat_completion`](Self::chat_completion); what goes wrong later comes as the stream's last item.
    pub fn chat_stream(&self, dialog: &Dialog, options: &ChatOptions) -> Result<ChatStream, Error> {
        let Some(prompt) = self.encode_dialog(dialog) else {
            return Ok(ChatStream::refused(self));
        };
        let requests = self.requests(std::iter::once(Some(&*prompt)), &options.into())?;
        let mut submissions = self.inner.engine.submit(requests)?;
        let submission = submissions.pop().ok_or(GenerateError::Stopped)?;
        Ok(ChatStream::new(self, submission, prompt.len()))
    }

    /// Continues each text (the reference's `text_completion`).
    ///
    /// # Errors
    ///
    /// As [`chat_completion`](Self::chat_completion).
    pub fn text_completion(
        &self,
        prompts: &[impl AsRef<str>],
        options: &CompletionOptions,
    ) -> Result<Vec<CompletionPrediction>, Error> {
        let encode = |prompt| self.inner.tokenizer.encode_prompt(prompt);
        let prompts: Vec<_> = prompts.iter().map(AsRef::as_ref).map(encode).collect();
        self.run_all(&prompts, options)?
            .into_iter()
            .map(|mut row| {
                let usage = row.usage();
                if options.echo {
                    row.echo(self.inner.tokenizer.eos_id());
                }
                Ok(CompletionPrediction {
                    generation: self.inner.tokenizer.decode(&row.tokens)?,
                    tokens: self.token_texts(&row, options.logprobs)?,
                    logprobs: options.logprobs.then_some(row.logprobs),
                    finish_reason: row.finish_reason,
                    usage,
                })
            })
            .collect()
    }

    /// Continues each list of tokens (the reference's `generate`): the new tokens of each, cut before EOS, and with
    /// `logprobs` as many log-probabilities. With `echo`, both have the prompt's in front.
    ///
    /// # Errors
    ///
    /// As [`chat_completion`](Self::chat_completion); [`Error::EmptyPrompt`] for a list without tokens,
    /// [`Error::TokenOutOfRange`] for a token that the model does not have.
    #[allow(clippy::type_complexity, reason = "the reference's return type")]
    pub fn generate(
        &self,
        prompt_tokens: &[Vec<TokenId>],
        options: &GenerationOptions,
    ) -> Result<(Vec<Vec<TokenId>>, Option<Vec<Vec<f32>>>), Error> {
        let mut rows = self.run_all(prompt_tokens, options)?;
        if options.echo {
            rows.iter_mut().for_each(|row| row.echo(self.inner.tokenizer.eos_id()));
        }
        let (tokens, logprobs) = rows.into_iter().map(|row| (row.tokens, row.logprobs)).unzip();
        Ok((tokens, options.logprobs.then_some(logprobs)))
    }

    /// The tokens of a dialog; `None` for one that is refused.
    fn encode_dialog(&self, dialog: &Dialog) -> Option<Vec<TokenId>> {
        self.inner.tokenizer.encode_dialog(dialog).ok()
    }

    fn chat_prediction(&self, row: Row, logprobs: bool) -> Result<ChatPrediction, Error> {
        Ok(ChatPrediction {
            generation: Message::assistant(self.inner.tokenizer.decode(&row.tokens)?),
            tokens: self.token_texts(&row, logprobs)?,
            usage: row.usage(),
            logprobs: logprobs.then_some(row.logprobs),
            finish_reason: row.finish_reason,
        })
    }

    fn token_texts(&self, row: &Row, wanted: bool) -> Result<Option<Vec<String>>, Error> {
        let decode = |&id| self.inner.tokenizer.decode_one(id);
        Ok(wanted.then(|| row.tokens.iter().map(decode).collect()).transpose()?)
    }

    fn run_all(&self, prompts: &[Vec<TokenId>], options: &GenerationOptions) -> Result<Vec<Row>, Error> {
        let rows = self.run(prompts.iter().map(|prompt| Some(&**prompt)), options)?;
        Ok(rows.into_iter().flatten().collect())
    }

    /// Runs the prompts together and waits for all; a `None` among them stays one.
    fn run<'a>(
        &self,
        prompts: impl ExactSizeIterator<Item = Option<&'a [TokenId]>> + Clone,
        options: &GenerationOptions,
    ) -> Result<Vec<Option<Row>>, Error> {
        let requests = self.requests(prompts.clone(), options)?;
        let mut submissions = self.inner.engine.submit(requests)?.into_iter();
        prompts
            .map(|prompt| match prompt {
                Some(prompt) => {
                    let submission = submissions.next().ok_or(GenerateError::Stopped)?;
                    Ok(Some(drain(prompt, &submission)?))
                }
                None => Ok(None),
            })
            .collect()
    }

    /// Checks the whole call, before any compute, and makes its requests.
    fn requests<'a>(
        &self,
        prompts: impl ExactSizeIterator<Item = Option<&'a [TokenId]>>,
        options: &GenerationOptions,
    ) -> Result<Vec<Request>, Error> {
        if prompts.len() == 0 {
            return Err(Error::Empty { what: "prompts" });
        }
        let sampling = SamplingOptions { temperature: options.temperature, top_p: options.top_p };
        sampling.validate().map_err(GenerateError::Sampling)?;
        let max_gen_len = options.max_gen_len.unwrap_or(self.inner.max_seq_len - 1);
        // How many earlier rows have the same prompt: their random streams differ, all others depend on the seed alone.
        let mut seen: HashMap<&[TokenId], u64> = HashMap::new();
        prompts
            .enumerate()
            .filter_map(|(row, prompt)| Some((row, prompt?)))
            .map(|(row, prompt)| {
                self.check_prompt(row, prompt, max_gen_len)?;
                let count = seen.entry(prompt).or_default();
                let stream = *count;
                *count += 1;
                let eos_id = self.inner.tokenizer.eos_id();
                // An echo is cut at the first EOS: what is generated behind one would never be seen.
                let ended = options.echo && prompt.contains(&eos_id);
                Ok(Request {
                    prompt: prompt.to_vec(),
                    max_gen_len: if ended { 0 } else { max_gen_len },
                    eos_id,
                    sampling,
                    seed: options.seed.unwrap_or(self.inner.seed),
                    row: stream,
                    logprobs: options.logprobs,
                    prompt_logprobs: options.logprobs && options.echo,
                })
            })
            .collect()
    }

    fn check_prompt(&self, row: usize, prompt: &[TokenId], max_gen_len: usize) -> Result<(), Error> {
        let vocab_size = self.inner.config.vocab_size;
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt { row });
        }
        if let Some(position) = prompt.iter().position(|id| id.0 as usize >= vocab_size) {
            return Err(Error::TokenOutOfRange { row, position, token: prompt[position], vocab_size });
        }
        let limit = self.inner.max_seq_len;
        // A prompt that is only scored may fill the context; one to go on from must leave room.
        let reserved = usize::from(max_gen_len > 0);
        if prompt.len() + reserved > limit {
            return Err(Error::ContextOverflow { row, prompt: prompt.len(), reserved, limit });
        }
        Ok(())
    }

    pub(crate) fn cancel(&self, submission: &Submission) {
        // An engine that has stopped has nothing left to cancel.
        let _ = self.inner.engine.cancel(submission.id);
    }
}

/// Waits for a request's last event.
fn drain(prompt: &[TokenId], submission: &Submission) -> Result<Row, GenerateError> {
    let mut row = Row {
        prompt: prompt.to_vec(),
        prompt_logprobs: Vec::new(),
        tokens: Vec::new(),
        logprobs: Vec::new(),
        finish_reason: FinishReason::Length,
    };
    loop {
        match submission.events.recv().map_err(|_| GenerateError::Stopped)? {
            Event::PromptLogprobs(logprobs) => row.prompt_logprobs = logprobs,
            Event::Token { id, logprob } => {
                row.tokens.push(id);
                row.logprobs.extend(logprob);
            }
            Event::Finished(reason) => {
                row.finish_reason = reason;
                return Ok(row);
            }
            Event::Failed(error) => return Err(error),
        }
    }
}

fn refusal(logprobs: bool) -> ChatPrediction {
    ChatPrediction {
        generation: Message::assistant(llama_dialog::REFUSAL),
        tokens: logprobs.then(Vec::new),
        logprobs: logprobs.then(Vec::new),
        finish_reason: FinishReason::Refused,
        usage: Usage::default(),
    }
}
