//! [`Llama`]: a loaded model, with the three calls of Meta's reference (`llama/generation.py`).

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use llama_backend::{ModelConfig, Notice, TokenId};

use crate::generate::{Call, CancelToken, Engine, EngineStats, GenerateError, Request};
use crate::options::{
    ChatOptions, ChatPrediction, CompletionOptions, CompletionPrediction, GenerationOptions, Prediction,
};
use crate::safety::{Guards, Prompt};
use crate::stream::{Answer, Answers, BatchStream, ChatStream, StreamToken, TextStream};
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
    /// Of this one; others may share the model with others.
    guards: Guards,
}

#[derive(Debug)]
struct Inner {
    engine: Engine,
    tokenizer: Tokenizer,
    config: ModelConfig,
    max_seq_len: usize,
    seed: u64,
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
        Self {
            inner: Arc::new(Inner { engine, tokenizer, config, max_seq_len, seed }),
            guards: Guards::default(),
        }
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

    pub(crate) fn guards(&self) -> &Guards {
        &self.guards
    }

    pub(crate) fn guards_mut(&mut self) -> &mut Guards {
        &mut self.guards
    }

    /// What was done while the model was loaded that nobody asked for.
    #[must_use]
    pub fn notices(&self) -> &[Notice] {
        self.inner.engine.notices()
    }

    /// What the model has done since it was loaded, and what it does now.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        self.inner.engine.stats()
    }

    /// Why the model answers nothing any more, if that is so ([`GenerateError::is_fatal`]).
    #[must_use]
    pub fn failure(&self) -> Option<GenerateError> {
        self.inner.engine.stopped()
    }

    /// Answers each dialog as the assistant (the reference's `chat_completion`).
    ///
    /// A dialog with one of the format's special tags is refused: its answer is [`llama_dialog::REFUSAL`] with
    /// [`FinishReason::Refused`](crate::FinishReason::Refused), it is never tokenised, and costs nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`] without dialogs, [`Error::ContextOverflow`] for a dialog that leaves no room to answer,
    /// [`Error::Option`] and [`Error::Generate`] for options out of their range: all before anything is computed, for the whole call.
    /// [`Error::Generate`] when the queue is full and the options say not to wait, and when an answer could not be completed. A call that is
    /// cancelled or out of time is no error: its answers are what was said until then.
    pub fn chat_completion(
        &self,
        dialogs: &[Dialog],
        options: &ChatOptions,
    ) -> Result<Vec<ChatPrediction>, Error> {
        if dialogs.is_empty() {
            return Err(Error::Empty { what: "dialogs" });
        }
        let answers = self.ask_dialogs(dialogs, options, &cancel_token(options))?.wait()?;
        Ok(answers.into_iter().map(|answer| prediction(answer, options, Message::assistant)).collect())
    }

    /// Answers a dialog as [`chat_completion`](Self::chat_completion) does, and gives the answer as it comes.
    ///
    /// # Errors
    ///
    /// As [`chat_completion`](Self::chat_completion); what goes wrong later comes as the stream's last item.
    pub fn chat_stream(&self, dialog: &Dialog, options: &ChatOptions) -> Result<ChatStream, Error> {
        Ok(ChatStream::new(self.chat_streams(std::slice::from_ref(dialog), options)?))
    }

    /// Answers each dialog as [`chat_completion`](Self::chat_completion) does, and gives all answers as they come.
    ///
    /// # Errors
    ///
    /// As [`chat_stream`](Self::chat_stream).
    pub fn chat_streams(&self, dialogs: &[Dialog], options: &ChatOptions) -> Result<BatchStream, Error> {
        if dialogs.is_empty() {
            return Err(Error::Empty { what: "dialogs" });
        }
        let cancel = cancel_token(options);
        Ok(BatchStream::new(self.ask_dialogs(dialogs, options, &cancel)?, cancel))
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
        let answers = self.ask(self.text_prompts(prompts)?, options, &cancel_token(options))?.wait()?;
        Ok(answers.into_iter().map(|answer| prediction(answer, options, |text| text)).collect())
    }

    /// Continues a text as [`text_completion`](Self::text_completion) does, and gives it as it comes.
    ///
    /// # Errors
    ///
    /// As [`chat_stream`](Self::chat_stream).
    pub fn text_stream(&self, prompt: &str, options: &CompletionOptions) -> Result<TextStream, Error> {
        Ok(ChatStream::new(self.text_streams(&[prompt], options)?))
    }

    /// Continues each text as [`text_completion`](Self::text_completion) does, and gives all of them as they come.
    ///
    /// # Errors
    ///
    /// As [`chat_stream`](Self::chat_stream).
    pub fn text_streams(
        &self,
        prompts: &[impl AsRef<str>],
        options: &CompletionOptions,
    ) -> Result<BatchStream, Error> {
        let cancel = cancel_token(options);
        Ok(BatchStream::new(self.ask(self.text_prompts(prompts)?, options, &cancel)?, cancel))
    }

    /// Continues each list of tokens (the reference's `generate`): the new tokens of each, cut before EOS, and with
    /// `logprobs` as many log-probabilities. With `echo`, both have the prompt's in front; of its first token, which stands behind nothing, the model
    /// has no probability, and its entry is 0, as the reference's is.
    ///
    /// A guarded model has no such call: guards judge text, and what is said in lists of tokens has no finish reason to tell a refusal by.
    ///
    /// # Errors
    ///
    /// As [`chat_completion`](Self::chat_completion); [`Error::Guarded`] for a guarded model, [`Error::EmptyPrompt`] for a list without tokens,
    /// [`Error::TokenOutOfRange`] for a token that the model does not have.
    #[allow(clippy::type_complexity, reason = "the reference's return type")]
    pub fn generate(
        &self,
        prompt_tokens: &[Vec<TokenId>],
        options: &GenerationOptions,
    ) -> Result<(Vec<Vec<TokenId>>, Option<Vec<Vec<f32>>>), Error> {
        let answers = self.ask_tokens(prompt_tokens, options, &cancel_token(options), "generate")?.wait()?;
        let row = |answer: Answer| answer.tokens.into_iter().map(|token| (token.id, token.logprob)).unzip();
        let (tokens, logprobs): (_, Vec<Vec<Option<f32>>>) = answers.into_iter().map(row).unzip();
        let as_numbers = |row: Vec<Option<f32>>| row.into_iter().map(as_number).collect();
        Ok((tokens, options.logprobs.then(|| logprobs.into_iter().map(as_numbers).collect())))
    }

    /// Continues each list of tokens as [`generate`](Self::generate) does, as text: gives all continuations as they come.
    ///
    /// # Errors
    ///
    /// As [`generate`](Self::generate); what goes wrong later comes as the stream's last item.
    pub fn generate_streams(
        &self,
        prompt_tokens: &[Vec<TokenId>],
        options: &GenerationOptions,
    ) -> Result<BatchStream, Error> {
        let cancel = cancel_token(options);
        Ok(BatchStream::new(self.ask_tokens(prompt_tokens, options, &cancel, "generate_streams")?, cancel))
    }

    fn ask_tokens(
        &self,
        prompt_tokens: &[Vec<TokenId>],
        options: &GenerationOptions,
        cancel: &CancelToken,
        call: &'static str,
    ) -> Result<Answers, Error> {
        if !self.guards.is_empty() {
            return Err(Error::Guarded { call });
        }
        self.ask(prompt_tokens.iter().cloned().map(Prompt::tokens).collect(), options, cancel)
    }

    fn ask_dialogs(
        &self,
        dialogs: &[Dialog],
        options: &GenerationOptions,
        cancel: &CancelToken,
    ) -> Result<Answers, Error> {
        if options.echo {
            return Err(Error::option("echo", true, "false for a dialog"));
        }
        let prompts = each_once(dialogs, PartialEq::eq, |dialog| {
            Prompt::dialog(self.tokenizer(), &self.guards, dialog)
        });
        self.ask(prompts?, options, cancel)
    }

    fn text_prompts(&self, texts: &[impl AsRef<str>]) -> Result<Vec<Prompt>, Error> {
        let is_same = |a: &_, b: &_| AsRef::<str>::as_ref(a) == AsRef::<str>::as_ref(b);
        each_once(texts, is_same, |text| Prompt::text(self.tokenizer(), &self.guards, text.as_ref()))
    }

    /// Checks the whole call, before any compute, and hands to the engine what is to be computed.
    fn ask(
        &self,
        prompts: Vec<Prompt>,
        options: &GenerationOptions,
        cancel: &CancelToken,
    ) -> Result<Answers, Error> {
        let requests = self.requests(&prompts, options)?;
        let (deadline, when_full) = (options.deadline, options.when_full);
        let call = Call { requests, cancel: cancel.clone(), deadline, when_full };
        let submission = self.inner.engine.submit(call)?;
        Answers::new(self, &prompts, options, submission)
    }

    fn requests(&self, prompts: &[Prompt], options: &GenerationOptions) -> Result<Vec<Request>, Error> {
        if prompts.is_empty() {
            return Err(Error::Empty { what: "prompts" });
        }
        let sampling = options.sampling(self.inner.config.vocab_size)?;
        let max_gen_len = options.max_gen_len.unwrap_or(self.inner.max_seq_len - 1);
        // How many earlier rows have the same prompt: their random streams differ, all others depend on the seed alone.
        let mut seen: HashMap<&[TokenId], u64> = HashMap::new();
        let rows = prompts.iter().enumerate().filter_map(|(row, prompt)| Some((row, prompt.to_compute()?)));
        rows.map(|(row, prompt)| {
            self.check_prompt(row, prompt, max_gen_len)?;
            let count = seen.entry(prompt).or_default();
            let stream = *count;
            *count += 1;
            let eos_id = self.inner.tokenizer.eos_id();
            // An echo is cut at the first EOS: what is generated behind one would never be seen.
            let ended = options.echo && prompt.contains(&eos_id);
            Ok(Request {
                place: row,
                prompt: prompt.into(),
                max_gen_len: if ended { 0 } else { max_gen_len },
                eos_id,
                sampling: sampling.clone(),
                seed: options.seed.unwrap_or(self.inner.seed),
                row: stream,
                logprobs: options.logprobs,
                top_logprobs: options.top_logprobs,
                prompt_logprobs: (options.logprobs && options.echo).then_some(1),
            })
        })
        .collect()
    }

    pub(crate) fn check_prompt(
        &self,
        row: usize,
        prompt: &[TokenId],
        max_gen_len: usize,
    ) -> Result<(), Error> {
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

    pub(crate) fn engine(&self) -> &Engine {
        &self.inner.engine
    }

    /// Why the engine gives no more events.
    pub(crate) fn engine_failure(&self) -> Error {
        self.inner.engine.failure().into()
    }
}

/// The prompts of a call. One that follows its like is judged and encoded together with it: who asks n times asks once.
fn each_once<T>(
    asked: &[T],
    is_same: impl Fn(&T, &T) -> bool,
    prompt: impl Fn(&T) -> Result<Prompt, Error>,
) -> Result<Vec<Prompt>, Error> {
    let mut prompts = Vec::with_capacity(asked.len());
    for same in asked.chunk_by(is_same) {
        let prompt = prompt(&same[0])?; // no chunk is empty
        prompts.extend(std::iter::repeat_n(prompt, same.len()));
    }
    Ok(prompts)
}

/// The caller's token, or one that nobody else has.
fn cancel_token(options: &GenerationOptions) -> CancelToken {
    options.cancel.clone().unwrap_or_default()
}

/// A logprob where one was asked for; the reference has 0 for the first token of an echoed prompt, of which there is none.
fn as_number(logprob: Option<f32>) -> f32 {
    logprob.unwrap_or(0.0)
}

/// An answer as the options ask for it, its text made what the call gives.
pub(crate) fn prediction<T>(
    answer: Answer,
    options: &GenerationOptions,
    generation: impl FnOnce(String) -> T,
) -> Prediction<T> {
    let Answer { text, tokens, finish_reason, judgements, usage, metrics } = answer;
    let logprobs = options.logprobs.then(|| tokens.iter().map(|token| as_number(token.logprob)).collect());
    let choices = |token: &StreamToken| token.top_logprobs.clone();
    let top_logprobs = (options.top_logprobs > 0).then(|| tokens.iter().map(choices).collect());
    let tokens = options.logprobs.then(|| tokens.into_iter().map(|token| token.text).collect());
    let generation = generation(text);
    Prediction { generation, tokens, logprobs, top_logprobs, finish_reason, judgements, usage, metrics }
}
