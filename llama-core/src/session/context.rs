//! The context window: what a prompt takes of it, and what happens when a conversation outgrows it.
//!
//! The decision: a policy never touches the record. A session keeps every turn, and a policy decides what is *sent*: the system prompt as
//! the caller wrote it, perhaps a summary, the newest turns, the message. Whole turns are dropped, the oldest first, and enough of them
//! that a quarter of the room is free again: what is sent then begins alike for several turns, so that the KV cache of its beginning can
//! be reused. A turn that was dropped stays dropped, for the same reason.
//!
//! All numbers come from encoding the very dialog that would be sent.

use std::time::{Duration, Instant};

use llama_dialog::Conversation;

use super::summary::{self, Summarizer, SummaryError, Writer};
use crate::{ChatOptions, ChatPrediction, Dialog, Error, FinishReason, Llama};

/// How the tokens of a context are spent.
///
/// `prompt`, `reserved` and `left` make up `limit`; where the first two are more than that, `left` is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContextBudget {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens that are kept free for the answer.
    pub reserved: usize,
    /// Tokens for which there is still room.
    pub left: usize,
    /// Tokens of the context: `max_seq_len`.
    pub limit: usize,
}

impl ContextBudget {
    pub(super) fn new(prompt: usize, reserved: usize, limit: usize) -> Self {
        let left = limit.saturating_sub(prompt).saturating_sub(reserved);
        Self { prompt, reserved, left, limit }
    }
}

/// What to do with a conversation that leaves no room for the answer.
///
/// No policy ever drops the system prompt or a part of a turn. A message that is too long even alone with the system prompt is
/// [`Error::MessageTooLong`] under each.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum ContextPolicy {
    /// It is refused: [`Error::ContextOverflow`].
    #[default]
    Reject,
    /// The oldest turns are not sent, until a quarter of the room is free again; where the message is so long that this cannot be,
    /// no more of them than it takes.
    DropOldestTurns,
    /// The same, and a summary stands in their place: as a first turn, in which the user asked for it.
    ///
    /// It is no part of the system prompt, because it is made of what users wrote: there, it would speak with the caller's authority.
    /// The system prompt stays what it was, and the summary has the weight of an answer. It is written anew only when turns
    /// are dropped that it does not cover. Where a message leaves no room for a summary, the turns are dropped without one, and those that
    /// follow are summarised together with them.
    Summarize(Summarizer),
}

/// How the context is spent.
#[derive(Debug, Clone, Default)]
pub struct ContextOptions {
    /// What to do with a conversation that leaves no room for the answer. Default: [`ContextPolicy::Reject`].
    pub policy: ContextPolicy,
    /// Tokens to keep free for the answer, below `max_seq_len`.
    ///
    /// `None`, the default: under [`Reject`](ContextPolicy::Reject) one, as [`chat_completion`](Llama::chat_completion) asks for; under other
    /// policies `max_gen_len`, and a quarter of the context at most.
    pub reserve: Option<usize>,
}

impl ContextOptions {
    /// Tokens to keep free for an answer under these options.
    pub(super) fn reserved(&self, options: &ChatOptions, limit: usize) -> Result<usize, Error> {
        // Scoring a prompt needs no room.
        let least = usize::from(options.max_gen_len != Some(0));
        match (self.reserve, &self.policy) {
            (Some(reserve), _) if reserve >= limit => {
                Err(Error::option("reserve", reserve, format!("less than max_seq_len, which is {limit}")))
            }
            (Some(reserve), _) => Ok(reserve.max(least)),
            (None, ContextPolicy::Reject) => Ok(least),
            (None, _) => Ok(options.max_gen_len.unwrap_or(limit).min(limit / 4).max(least)),
        }
    }
}

/// What was sent of a conversation, and what was not.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ContextReport {
    /// How the context is spent by what was sent.
    pub budget: ContextBudget,
    /// Turns that were not sent: the oldest so many.
    pub dropped: usize,
    /// Of these, the turns that the message before was still sent with.
    pub newly_dropped: usize,
    /// What was sent in their place.
    pub summary: Option<String>,
    /// Dropped turns that the summary covers: the oldest so many.
    pub summarised: usize,
    /// Of these, the turns that are not in the model's summary: each alone filled its context, or it said nothing of them.
    pub unread: usize,
}

impl ContextReport {
    /// Of a dialog that is refused: nothing is sent.
    pub(super) fn of_nothing(budget: ContextBudget) -> Self {
        Self { budget, dropped: 0, newly_dropped: 0, summary: None, summarised: 0, unread: 0 }
    }
}

impl Llama {
    /// Tokens of a dialog's prompt.
    ///
    /// ```no_run
    /// # let llama = llama_core::Llama::build("llama-2-7b-chat", "tokenizer.model", 512, 8)?;
    /// let dialog = llama_core::Dialog::new("What is the capital of France?");
    /// assert!(llama.count_tokens(&dialog)? < llama.max_seq_len());
    /// # Ok::<(), llama_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::SpecialTag`] for a dialog that has no rendering.
    pub fn count_tokens(&self, dialog: &Dialog) -> Result<usize, Error> {
        Ok(self.tokenizer().encode_dialog(dialog)?.len())
    }

    /// How a dialog and its answer spend the context.
    ///
    /// # Errors
    ///
    /// As [`count_tokens`](Self::count_tokens); [`Error::Option`] for a reserve that is no less than the context.
    pub fn context_budget(
        &self,
        dialog: &Dialog,
        context: &ContextOptions,
        options: &ChatOptions,
    ) -> Result<ContextBudget, Error> {
        let limit = self.max_seq_len();
        Ok(ContextBudget::new(self.count_tokens(dialog)?, context.reserved(options, limit)?, limit))
    }

    /// The dialog to send in place of one that may be too long, and what it lacks. A [`Session`](crate::Session) does this by itself, and
    /// remembers from turn to turn what it dropped.
    ///
    /// # Errors
    ///
    /// [`Error::MessageTooLong`]; [`Error::ContextOverflow`] under [`ContextPolicy::Reject`]; [`Error::Summary`] and what
    /// [`chat_completion`](Self::chat_completion) returns under [`ContextPolicy::Summarize`]; else as
    /// [`context_budget`](Self::context_budget).
    pub fn fit_context(
        &self,
        dialog: Dialog,
        context: &ContextOptions,
        options: &ChatOptions,
    ) -> Result<(Dialog, ContextReport), Error> {
        let (conversation, message) = dialog.split();
        let reserved = context.reserved(options, self.max_seq_len())?;
        let asking = Asking::new(self, options)?;
        Window::default().fit(&asking, &conversation, &message, &context.policy, reserved)
    }
}

/// What fitting asks of a model: tests answer it themselves.
pub(super) trait Reader {
    /// Tokens of a context.
    fn limit(&self) -> usize;
    /// Tokens of a prompt.
    fn count(&self, dialog: &Dialog) -> Result<usize, Error>;
    /// The most probable answer, of so many tokens at most.
    fn answer(&self, dialog: &Dialog, max_gen_len: usize) -> Result<String, Error>;
}

/// A model that reads under a call's options.
pub(super) struct Asking<'a> {
    llama: &'a Llama,
    options: &'a ChatOptions,
    begun: Instant,
}

impl<'a> Asking<'a> {
    /// Options that are not valid are refused before anything is asked.
    pub(super) fn new(llama: &'a Llama, options: &'a ChatOptions) -> Result<Self, Error> {
        options.sampling(llama.config().vocab_size)?;
        Ok(Self { llama, options, begun: Instant::now() })
    }

    /// Until the deadline.
    pub(super) fn time_left(&self) -> Option<Duration> {
        self.options.deadline.map(|deadline| deadline.saturating_sub(self.begun.elapsed()))
    }
}

impl Reader for Asking<'_> {
    fn limit(&self) -> usize {
        self.llama.max_seq_len()
    }

    fn count(&self, dialog: &Dialog) -> Result<usize, Error> {
        self.llama.count_tokens(dialog)
    }

    fn answer(&self, dialog: &Dialog, max_gen_len: usize) -> Result<String, Error> {
        let options = ChatOptions {
            temperature: 0.0,
            max_gen_len: Some(max_gen_len),
            cancel: self.options.cancel.clone(),
            deadline: self.time_left(),
            when_full: self.options.when_full,
            ..Default::default()
        };
        let answers = self.llama.chat_completion(std::slice::from_ref(dialog), &options)?;
        let text = |answer: ChatPrediction| match answer.finish_reason {
            reason @ (FinishReason::Cancelled | FinishReason::Deadline) => {
                Err(SummaryError::Ended(reason).into())
            }
            FinishReason::Guarded => Err(SummaryError::Guarded.into()),
            _ => Ok(answer.generation.content),
        };
        answers.into_iter().map(text).collect()
    }
}

/// Which turns of a conversation are sent. It belongs to one conversation, which only grows.
#[derive(Debug, Clone, Default)]
pub(super) struct Window {
    /// Turns that are not sent: the oldest so many.
    dropped: usize,
    /// What stands for the oldest `summarised` of them; `None` where there was nothing to say.
    summary: Option<String>,
    summarised: usize,
    unread: usize,
}

impl Window {
    /// Starts afresh where turns that it knew were taken back.
    pub(super) fn shorten(&mut self, n_turns: usize) {
        if self.dropped > n_turns {
            *self = Self::default();
        }
    }

    /// The dialog that would be sent were nothing more to be dropped.
    pub(super) fn dialog(
        &self,
        conversation: &Conversation,
        message: &str,
        policy: &ContextPolicy,
    ) -> Dialog {
        let (from, summary) = self.sent(policy);
        dialog(conversation, from, summary, message)
    }

    /// From which turn on turns are sent, and behind which summary.
    fn sent(&self, policy: &ContextPolicy) -> (usize, Option<&str>) {
        match policy {
            ContextPolicy::Reject => (0, None),
            ContextPolicy::DropOldestTurns => (self.dropped, None),
            ContextPolicy::Summarize(_) => (self.dropped, self.summary.as_deref()),
        }
    }

    /// The dialog to send, for an answer of `reserved` tokens. An error leaves the window as it was.
    pub(super) fn fit(
        &mut self,
        reader: &impl Reader,
        conversation: &Conversation,
        message: &str,
        policy: &ContextPolicy,
        reserved: usize,
    ) -> Result<(Dialog, ContextReport), Error> {
        let fitting =
            Fitting { reader, conversation, message, room: reader.limit().saturating_sub(reserved) };
        let mut dialog = self.dialog(conversation, message, policy);
        let mut prompt = reader.count(&dialog)?;
        // A summary that was left behind is made up for as soon as there is room.
        let is_behind = matches!(policy, ContextPolicy::Summarize(_)) && self.summarised < self.dropped;
        let mut newly_dropped = 0;
        if prompt > fitting.room || is_behind {
            let limit = reader.limit();
            let alone = fitting.cost(fitting.n_turns(), None)?;
            if alone > fitting.room {
                return Err(Error::MessageTooLong { prompt: alone, reserved, limit });
            }
            let next = match policy {
                ContextPolicy::Reject => {
                    return Err(Error::ContextOverflow { row: 0, prompt, reserved, limit });
                }
                ContextPolicy::DropOldestTurns => fitting.drop_turns(self)?,
                ContextPolicy::Summarize(summarizer) => fitting.summarize(self, summarizer)?,
            };
            newly_dropped = next.dropped - self.dropped; // a turn that was dropped stays dropped
            *self = next;
            dialog = self.dialog(conversation, message, policy);
            prompt = reader.count(&dialog)?;
        }
        let (dropped, summary) = self.sent(policy);
        let summarised = if summary.is_some() { self.summarised } else { 0 };
        let report = ContextReport {
            budget: ContextBudget::new(prompt, reserved, reader.limit()),
            dropped,
            newly_dropped,
            summary: summary.map(str::to_owned),
            summarised,
            unread: self.unread.min(summarised),
        };
        Ok((dialog, report))
    }
}

/// The conversation without its oldest turns, behind the summary of those.
fn dialog(conversation: &Conversation, from: usize, summary: Option<&str>, message: &str) -> Dialog {
    let mut sent = Conversation::new();
    sent.set_system(conversation.system().map(str::to_owned));
    if let Some(summary) = summary {
        sent.push_turn(summary::REQUEST, summary);
    }
    for turn in conversation.turns().skip(from) {
        sent.push_turn(turn.user, turn.answer.unwrap_or_default()); // all turns of a conversation are answered
    }
    sent.ask(message)
}

/// A message that does not fit.
struct Fitting<'a, R> {
    reader: &'a R,
    conversation: &'a Conversation,
    message: &'a str,
    /// Tokens that a prompt may have.
    room: usize,
}

impl<R: Reader> Fitting<'_, R> {
    fn n_turns(&self) -> usize {
        self.conversation.turns().len()
    }

    /// Tokens of what is sent without the oldest `from` turns.
    fn cost(&self, from: usize, summary: Option<&str>) -> Result<usize, Error> {
        self.reader.count(&dialog(self.conversation, from, summary, self.message))
    }

    /// How many turns to drop, `first` or more, for a prompt within three quarters of the room, or else within the room, with a summary and
    /// `extra` tokens. `None` where there is no room even without any turn.
    fn choose(&self, first: usize, summary: Option<&str>, extra: usize) -> Result<Option<usize>, Error> {
        let least = |room: usize| {
            least(first, self.n_turns(), |from| Ok(self.cost(from, summary)?.saturating_add(extra) <= room))
        };
        match least(self.room - self.room / 4)? {
            Some(from) => Ok(Some(from)),
            None => least(self.room),
        }
    }

    fn drop_turns(&self, window: &Window) -> Result<Window, Error> {
        // The message alone fits: that was seen.
        let dropped = self.choose(window.dropped, None, 0)?.unwrap_or(self.n_turns());
        // What is dropped beyond the summary shows when it is asked for again.
        Ok(Window { dropped, ..window.clone() })
    }

    fn summarize(&self, window: &Window, summarizer: &Summarizer) -> Result<Window, Error> {
        let max_tokens = summarizer.max_tokens(self.room)?;
        // Without a turn more there is nothing new to be written.
        let first = window.dropped + usize::from(window.summarised == window.dropped);
        let Some(dropped) = self.choose(first, Some(""), max_tokens)? else {
            return self.without_new_summary(window);
        };
        let writer = Writer { reader: self.reader, system: self.conversation.system(), max_tokens };
        let turns: Vec<_> = self.conversation.turns().take(dropped).skip(window.summarised).collect();
        let written = writer.write(summarizer, window.summary.as_deref(), &turns)?;
        let tokens = self.cost(dropped, written.summary.as_deref())?;
        if tokens > self.room {
            return Err(summary::too_long(tokens, self.room));
        }
        let unread = window.unread + written.unread;
        Ok(Window { dropped, summary: written.summary, summarised: dropped, unread })
    }

    /// With the summary that is there, or with none where the message leaves no room for that either.
    fn without_new_summary(&self, window: &Window) -> Result<Window, Error> {
        if let Some(dropped) = self.choose(window.dropped, window.summary.as_deref(), 0)? {
            return Ok(Window { dropped, ..window.clone() });
        }
        let dropped = self.choose(window.dropped, None, 0)?.unwrap_or(self.n_turns());
        Ok(Window { dropped, ..Window::default() })
    }
}

/// The least number in `first..=last` of which this is so, if it is so of all after it.
pub(super) fn least(
    first: usize,
    last: usize,
    mut is_so: impl FnMut(usize) -> Result<bool, Error>,
) -> Result<Option<usize>, Error> {
    let (mut low, mut high) = (first, last + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        if is_so(middle)? {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Ok((low <= last).then_some(low))
}
