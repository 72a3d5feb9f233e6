//! [`ChatStream`]: an answer as it comes.

use crate::generate::{Event, FinishReason, GenerateError, Submission, Usage};
use crate::tokenizer::Detokenizer;
use crate::{Error, Llama};

/// An answer as it comes: pieces of text, then how it ended. The pieces join to exactly what
/// [`chat_completion`](Llama::chat_completion) returns. Dropping the stream cancels the answer.
///
/// ```no_run
/// # use llama_core::{ChatOptions, Dialog, Llama};
/// # let llama = Llama::build("llama-2-7b-chat", "tokenizer.model", 512, 8)?;
/// use llama_core::StreamEvent;
///
/// for event in llama.chat_stream(&Dialog::new("Tell me a story."), &ChatOptions::default())? {
///     match event? {
///         StreamEvent::Text(text) => print!("{text}"),
///         StreamEvent::Finished { finish_reason, .. } => println!("\n({finish_reason:?})"),
///         _ => {}
///     }
/// }
/// # Ok::<(), llama_core::Error>(())
/// ```
#[derive(Debug)]
pub struct ChatStream {
    /// Keeps the engine alive, and cancels.
    llama: Llama,
    state: State,
    usage: Usage,
}

#[derive(Debug)]
enum State {
    Running {
        submission: Submission,
        detokenizer: Detokenizer,
    },
    /// Its last text was given: what is left is how it ended.
    Ending(FinishReason),
    Refused,
    Ended,
}

/// What happens in a stream.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum StreamEvent {
    /// More of the answer's text: whole characters.
    Text(String),
    /// The answer is complete; nothing follows.
    Finished {
        /// Why it ended.
        finish_reason: FinishReason,
        /// The tokens that it cost.
        usage: Usage,
    },
}

impl ChatStream {
    pub(crate) fn new(llama: &Llama, submission: Submission, prompt_tokens: usize) -> Self {
        let detokenizer = llama.tokenizer().detokenizer();
        let usage = Usage { prompt_tokens, completion_tokens: 0 };
        Self { llama: llama.clone(), state: State::Running { submission, detokenizer }, usage }
    }

    /// The stream of a dialog with special tags: the refusal, and nothing was computed.
    pub(crate) fn refused(llama: &Llama) -> Self {
        Self { llama: llama.clone(), state: State::Refused, usage: Usage::default() }
    }

    fn running(&mut self) -> Option<Result<StreamEvent, Error>> {
        while let State::Running { submission, detokenizer } = &mut self.state {
            match submission.events.recv().unwrap_or(Event::Failed(GenerateError::Stopped)) {
                Event::PromptLogprobs(_) => {}
                Event::Token { id, .. } => {
                    self.usage.completion_tokens += 1;
                    match detokenizer.push(id) {
                        Ok(text) if text.is_empty() => {}
                        Ok(text) => return Some(Ok(StreamEvent::Text(text))),
                        Err(error) => return Some(self.fail(error.into())),
                    }
                }
                Event::Finished(reason) => {
                    let rest = match std::mem::replace(&mut self.state, State::Ending(reason)) {
                        State::Running { detokenizer, .. } => detokenizer.finish(),
                        _ => String::new(),
                    };
                    if !rest.is_empty() {
                        return Some(Ok(StreamEvent::Text(rest)));
                    }
                }
                Event::Failed(error) => return Some(self.fail(error.into())),
            }
        }
        self.next()
    }

    fn fail(&mut self, error: Error) -> Result<StreamEvent, Error> {
        self.cancel();
        Err(error)
    }

    fn cancel(&mut self) {
        if let State::Running { submission, .. } = std::mem::replace(&mut self.state, State::Ended) {
            self.llama.cancel(&submission);
        }
    }
}

impl Iterator for ChatStream {
    type Item = Result<StreamEvent, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.state {
            State::Running { .. } => self.running(),
            State::Ending(finish_reason) => {
                self.state = State::Ended;
                Some(Ok(StreamEvent::Finished { finish_reason, usage: self.usage }))
            }
            State::Refused => {
                self.state = State::Ending(FinishReason::Refused);
                Some(Ok(StreamEvent::Text(llama_dialog::REFUSAL.to_owned())))
            }
            State::Ended => None,
        }
    }
}

impl Drop for ChatStream {
    fn drop(&mut self) {
        self.cancel();
    }
}
