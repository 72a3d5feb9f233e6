//! [`Session`]: a conversation with a model, message by message.
//!
//! The decision: a session is a dialog and no state of the engine's. Each message sends the whole dialog, encoded afresh, so that the
//! answer is by construction the one that [`chat_completion`](crate::Llama::chat_completion) gives to it: what was sampled is never
//! appended, since encoding it again may give other tokens (white space is stripped, and merges differ). That nothing is computed twice
//! is the engine's affair, which keeps the KV cache of what it has seen. An idle session therefore holds no slot and costs no memory but its text.
//!
//! What becomes a part of the conversation is a rule of its own: see [`Session`].

mod context;
mod stream;
mod summary;
#[cfg(test)]
mod tests;

use llama_dialog::{Conversation, RawMessage, SpecialTag};

use context::{Asking, Window};
pub use context::{ContextBudget, ContextOptions, ContextPolicy, ContextReport};
pub use stream::{LeftOut, LeftOutReason, SessionStream};
pub use summary::{Summarizer, SummaryError, SummaryRequest};

use crate::generate::FinishReason;
use crate::options::{ChatOptions, ChatPrediction};
use crate::{Dialog, Error, Llama};

/// A conversation with a model: it remembers what was said, and sends as much of it as the context holds.
///
/// ```no_run
/// # let llama = llama_core::Llama::build("llama-2-7b-chat", "tokenizer.model", 512, 8)?;
/// use llama_core::StreamEvent;
///
/// let mut session = llama.session(Some("Answer in one sentence."));
/// println!("{}", session.ask("What is the capital of France?")?.prediction.generation.content);
/// for event in session.send("And of Spain?")? {
///     if let StreamEvent::Text(text) = event? {
///         print!("{text}");
///     }
/// }
/// std::fs::write("chat.json", session.to_json()).unwrap();
/// # Ok::<(), llama_core::Error>(())
/// ```
///
/// **What is kept.** A message and its answer become a turn when the answer finishes: one that was cut by `max_gen_len`, by a stop string or
/// by the context is kept as far as it came. One that was ended before its time, cancelled, out of time, dropped or failed, is not a
/// part of the conversation: [`left_out`](Self::left_out) has both texts until the next message, and [`keep`](Self::keep) adds them.
/// A message that was refused for a special tag is there too, and so is an answer that spells one: no dialog
/// with it could be sent again. What a guard refused is kept nowhere: there is the answer as far as it was told, and no message where something was
/// refused before the answer. A message that a guard replaced is kept as it was sent.
///
/// **What is sent.** [`ContextOptions`] say what happens when the conversation outgrows the context. The record stays whole, and so does
/// what is saved; a summary belongs to the session at hand, and is written anew where one that was loaded needs it.
///
/// An error of [`send`](Self::send) itself leaves the session as it was.
#[derive(Debug, Clone)]
pub struct Session {
    llama: Llama,
    conversation: Conversation,
    options: ChatOptions,
    context: ContextOptions,
    window: Window,
    left_out: Option<LeftOut>,
}

/// An answer in a session.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SessionAnswer {
    /// What [`chat_completion`](Llama::chat_completion) says of it.
    pub prediction: ChatPrediction,
    /// What was sent of the conversation, and what was not.
    pub context: ContextReport,
}

impl Llama {
    /// Starts a conversation, under a system prompt or under none.
    #[must_use]
    pub fn session(&self, system: Option<&str>) -> Session {
        let mut conversation = Conversation::new();
        conversation.set_system(system.map(str::to_owned));
        self.resume(conversation)
    }

    /// Goes on with a conversation.
    #[must_use]
    pub fn resume(&self, conversation: Conversation) -> Session {
        Session {
            llama: self.clone(),
            conversation,
            options: ChatOptions::default(),
            context: ContextOptions::default(),
            window: Window::default(),
            left_out: None,
        }
    }

    /// Goes on with a conversation that [`Session::to_json`] saved: a list of messages, `[{"role": "user", "content": "…"}, …]`, the last one from
    /// the assistant.
    ///
    /// # Errors
    ///
    /// [`Error::Json`] for what is no list of messages, [`Error::Dialog`] for one that is no conversation: it names the message.
    pub fn session_from_json(&self, json: &str) -> Result<Session, Error> {
        let messages: Vec<RawMessage> = serde_json::from_str(json).map_err(Error::Json)?;
        Ok(self.resume(Conversation::try_from(messages)?))
    }
}

impl Session {
    /// The same session, answered in this way from now on.
    #[must_use]
    pub fn with_options(mut self, options: ChatOptions) -> Self {
        self.options = options;
        self
    }

    /// The same session, spending its context in this way from now on.
    #[must_use]
    pub fn with_context(mut self, context: ContextOptions) -> Self {
        self.context = context;
        self
    }

    /// All that was said, turns included that are no longer sent.
    #[must_use]
    pub fn conversation(&self) -> &Conversation {
        &self.conversation
    }

    /// The conversation as JSON: the list of its messages.
    #[must_use]
    pub fn to_json(&self) -> String {
        // A list of strings is always JSON.
        serde_json::to_string_pretty(&self.conversation).unwrap_or_default()
    }

    /// How the context would be spent by an empty message: what the conversation takes already, and how much room there is for the next.
    ///
    /// # Errors
    ///
    /// As [`Llama::context_budget`].
    pub fn budget(&self) -> Result<ContextBudget, Error> {
        let dialog = self.window.dialog(&self.conversation, "", &self.context.policy);
        self.llama.context_budget(&dialog, &self.context, &self.options)
    }

    /// How messages are answered from now on.
    pub fn options_mut(&mut self) -> &mut ChatOptions {
        &mut self.options
    }

    /// Says something, and gives the answer as it comes.
    ///
    /// # Errors
    ///
    /// As [`Llama::fit_context`] and [`Llama::chat_stream`]; what goes wrong later comes as the stream's last item.
    pub fn send(&mut self, message: impl Into<String>) -> Result<SessionStream<'_>, Error> {
        let message = message.into();
        let asking = Asking::new(&self.llama, &self.options)?;
        let (dialog, window, context) = self.fit(&asking, &message)?;
        let options = ChatOptions { deadline: asking.time_left(), ..self.options.clone() };
        let stream = self.llama.chat_stream(&dialog, &options)?;
        (self.window, self.left_out) = (window, None);
        let message = stream.message().map_or(message, str::to_owned);
        Ok(SessionStream::new(self, stream, message, context))
    }

    /// Says something, and waits for the answer.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send) and [`SessionStream::wait`].
    pub fn ask(&mut self, message: impl Into<String>) -> Result<SessionAnswer, Error> {
        self.send(message)?.wait()
    }

    /// The last message and its answer, where they did not become a part of the conversation.
    #[must_use]
    pub fn left_out(&self) -> Option<&LeftOut> {
        self.left_out.as_ref()
    }

    /// Makes a turn of a message whose answer was interrupted or failed, with as much of the answer as came. Says whether there was one:
    /// an answer that was not begun cannot be kept.
    pub fn keep(&mut self) -> bool {
        let keepable = |left: &mut LeftOut| {
            matches!(left.reason, LeftOutReason::Interrupted | LeftOutReason::Failed)
                && !left.answer.is_empty()
                && SpecialTag::find(&left.answer).is_none()
        };
        let kept = self.left_out.take_if(keepable);
        let is_kept = kept.is_some();
        if let Some(LeftOut { message, answer, .. }) = kept {
            self.conversation.push_turn(message, answer);
        }
        is_kept
    }

    /// Takes the last turn back: the user's message and its answer. `None` where there is none.
    pub fn undo(&mut self) -> Option<(String, String)> {
        let turn = self.conversation.pop_turn();
        self.window.shorten(self.conversation.turns().len());
        turn
    }

    /// Forgets every turn, and keeps the system prompt.
    pub fn reset(&mut self) {
        self.conversation.clear();
        self.window = Window::default();
        self.left_out = None;
    }

    /// Puts this system prompt in place of the one that the conversation has, or takes that away. What was said stays.
    pub fn set_system(&mut self, system: Option<String>) {
        self.conversation.set_system(system);
    }

    /// What to send for a message, and the window that it is seen through.
    fn fit(&self, asking: &Asking<'_>, message: &str) -> Result<(Dialog, Window, ContextReport), Error> {
        let reserved = self.context.reserved(&self.options, self.llama.max_seq_len())?;
        let mut window = self.window.clone();
        let whole = self.conversation.ask(message);
        if whole.special_tag().is_some() {
            // It will be refused, and costs nothing.
            let budget = ContextBudget::new(0, reserved, self.llama.max_seq_len());
            return Ok((whole, window, ContextReport::of_nothing(budget)));
        }
        let (dialog, report) =
            window.fit(asking, &self.conversation, message, &self.context.policy, reserved)?;
        Ok((dialog, window, report))
    }

    /// Takes an answer that ended.
    fn record(&mut self, message: String, answer: String, reason: FinishReason) {
        let left_out = match reason {
            FinishReason::Refused => Some(LeftOutReason::Refused),
            FinishReason::Guarded => Some(LeftOutReason::Guarded),
            _ if SpecialTag::find(&answer).is_some() => Some(LeftOutReason::SpecialTag),
            FinishReason::Cancelled | FinishReason::Deadline => Some(LeftOutReason::Interrupted),
            _ => None,
        };
        match left_out {
            Some(reason) => self.leave_out(message, answer, reason),
            None => self.conversation.push_turn(message, answer),
        }
    }

    fn leave_out(&mut self, message: String, answer: String, reason: LeftOutReason) {
        self.left_out = Some(LeftOut { message, answer, reason });
    }
}
