//! How a question becomes a prompt, and how answers are generated for a guard or a judge to read.

use std::path::Path;

use clap::ValueEnum;
use llama_core::{Dialog, Error, FinishReason, GenerationOptions, Judgement, Llama, Prediction};

use crate::args::Args;
use crate::{Result, check_len};

/// How answers are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Ask {
    /// As a user's message, of a chat model
    Chat,
    /// As the rest of the line behind the prompt, of a pretrained model
    Text,
}

/// A question as a prompt.
pub(crate) struct PromptFormat {
    preset: String,
    before: String,
    after: String,
}

impl PromptFormat {
    pub(crate) fn new(format: &str, preset: Option<&Path>) -> Result<Self> {
        let format = format.replace("\\n", "\n");
        let Some((before, after)) = format.split_once("{question}") else {
            return Err(
                format!("--prompt_format is {format:?}, expected a text with {{question}} in it").into()
            );
        };
        let preset = preset.map(crate::read).transpose()?;
        let preset = preset.map(|preset| format!("{}\n\n", preset.trim_end())).unwrap_or_default();
        Ok(Self { preset, before: before.to_owned(), after: after.to_owned() })
    }

    pub(crate) fn prompt(&self, question: &str) -> String {
        let Self { preset, before, after } = self;
        format!("{preset}{before}{question}{after}")
    }
}

/// How answers are generated.
pub(crate) struct Asking<'a> {
    ask: Ask,
    options: GenerationOptions,
    format: &'a PromptFormat,
    at_a_time: usize,
}

/// What a model said.
pub(crate) struct Said {
    pub(crate) text: String,
    /// Whether its prompt holds a special tag of the chat format: the text is then not the model's.
    pub(crate) is_refused: bool,
    /// What stopped it, if a guard did.
    pub(crate) judgement: Option<Judgement>,
}

/// Prompts each of which leaves room for an answer.
pub(crate) struct Prompts(Vec<String>);

impl<'a> Asking<'a> {
    pub(crate) fn new(args: &Args, format: &'a PromptFormat) -> Result<Self> {
        if args.max_gen_len == 0 {
            return Err("--max_gen_len is 0, expected at least 1: there would be nothing to judge".into());
        }
        // A pretrained model goes on with the next question of its own.
        let stop = if args.ask == Ask::Text { vec!["\n".to_owned()] } else { Vec::new() };
        let options = GenerationOptions {
            temperature: args.temperature,
            top_p: args.top_p,
            max_gen_len: Some(args.max_gen_len),
            stop,
            ..Default::default()
        };
        Ok(Self { ask: args.ask, options, format, at_a_time: args.max_batch_size })
    }

    /// How a question is asked.
    pub(crate) fn prompt(&self, question: &str) -> String {
        match self.ask {
            Ask::Chat => question.to_owned(),
            Ask::Text => self.format.prompt(question),
        }
    }

    /// Checks prompts before any of them is answered; an error is about the one at its `place`.
    pub(crate) fn check(
        &self,
        llama: &Llama,
        prompts: Vec<String>,
        place: impl Fn(usize) -> String,
    ) -> Result<Prompts> {
        let tokenizer = llama.tokenizer();
        for (i, prompt) in prompts.iter().enumerate() {
            let tokens = match self.ask {
                // One that has no rendering holds a special tag: it will be refused, and counted.
                Ask::Chat => tokenizer.encode_dialog(&Dialog::new(prompt.as_str())).unwrap_or_default(),
                Ask::Text => tokenizer.encode_prompt(prompt),
            };
            check_len(|| place(i), tokens.len(), 1, llama)?;
        }
        Ok(Prompts(prompts))
    }

    /// Goes on from prompts, a batch at a time. `told` hears how many were answered.
    pub(crate) fn go_on(
        &self,
        llama: &Llama,
        Prompts(prompts): &Prompts,
        mut told: impl FnMut(usize),
    ) -> Result<Vec<Said>> {
        let mut said = Vec::with_capacity(prompts.len());
        for prompts in prompts.chunks(self.at_a_time) {
            said.extend(self.generate(llama, prompts)?);
            told(prompts.len());
        }
        Ok(said)
    }

    fn generate(&self, llama: &Llama, prompts: &[String]) -> std::result::Result<Vec<Said>, Error> {
        let dialog = |prompt: &String| Dialog::new(prompt.as_str());
        Ok(match self.ask {
            Ask::Chat => {
                let answers =
                    llama.chat_completion(&prompts.iter().map(dialog).collect::<Vec<_>>(), &self.options)?;
                answers.into_iter().map(|answer| said(answer, |message| message.content)).collect()
            }
            Ask::Text => {
                let texts = llama.text_completion(prompts, &self.options)?;
                texts.into_iter().map(|text| said(text, |text| text)).collect()
            }
        })
    }
}

fn said<T>(answer: Prediction<T>, text: impl FnOnce(T) -> String) -> Said {
    let Prediction { generation, finish_reason, mut judgements, .. } = answer;
    let judgement = judgements.pop().filter(|_| finish_reason == FinishReason::Guarded);
    let is_refused = finish_reason == FinishReason::Refused;
    Said { text: text(generation).trim().to_owned(), is_refused, judgement }
}
