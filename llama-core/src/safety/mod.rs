//! Guards: who judges what goes into a model and what comes out of it.
//!
//! The decision: guards belong to a [`Llama`] as one holds it, not to the engine. [`Llama::with_guard`] gives one of which every call is
//! guarded, and which cannot be had back without; the one it was made from shares the engine and is as it was. So a guard may ask the very model
//! that it guards, and is never asked about its own questions.
//!
//! Input is judged message by message before anything is computed ([`prompt`]); output in the release stage (`stream::release`), from which
//! nothing leaves that was not judged, text and tokens alike. Both are on the thread of the caller, who waits or reads. The engine waits for neither.
//!
//! The format's special tags are not the affair of a guard: a dialog that holds one has no rendering, guards or not.

mod classifier;
mod leak;
mod normal;
mod prompt;
mod words;

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::classifier::{Classifier, ClassifierError};
pub use self::leak::PromptLeak;
pub(crate) use self::prompt::Prompt;
pub use self::words::{WordList, WordListError};
use crate::{Llama, Message, Role};

/// Judges what goes into a model and what comes out of it.
///
/// Guards run on the thread that waits for an answer or reads the stream, and hold up nobody but that reader. One that asks a model waits
/// for a slot like any other caller; if it is the model that it guards, with no slot free (`max_batch_size` 1 and a stream that is being answered), it
/// waits until that answer is complete, which goes on unread. A second slot saves that wait.
///
/// A panic in a guard goes on to the caller, with nothing told of what was to be judged.
pub trait Guard: Send + Sync {
    /// The verdict. Of an answer, every text is judged that begins as the answer does, window by window ([`HoldBack`]): what is told of an answer is at any
    /// time a text that every guard has allowed.
    ///
    /// # Errors
    ///
    /// Whatever kept it from judging. The text is then refused ([`Outcome::Failed`]). The error's text is told: it must not quote what was judged.
    fn judge(&self, excerpt: &Excerpt<'_>) -> Result<Verdict, GuardError>;
}

/// Why a guard could not judge.
pub type GuardError = Box<dyn StdError + Send + Sync>;

/// What a guard judges.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Excerpt<'a> {
    /// The text: a whole message, a whole prompt, or an answer from its beginning as far as it is to be told now. It ends with a whole word. The
    /// answer to a text's prompt begins with the prompt, whether that is echoed or not: they are one text, and a word may go on from one to the other.
    pub text: &'a str,
    /// How many bytes at the beginning of the text are such a prompt's, which was judged before: 0 but for the continuation of a text.
    pub prompt_len: usize,
    /// Whether it is on its way in or out.
    pub side: Side,
    /// Who says it: the prompt of a text completion is the user's, what it is continued to the assistant's.
    pub role: Role,
    /// What was said before, as the guards left it; nothing where a text is continued.
    pub before: &'a [Message],
}

/// On its way to the model, or from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// A message of the dialog, whoever's: what stands in a dialog as an answer need not be one. Or a prompt.
    Input,
    /// An answer.
    Output,
}

/// What a guard says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// The text may pass.
    Allow,
    /// This text passes in its place, to the guards that follow and then to the model or the reader. The tokens of what was replaced are not told. It
    /// takes the whole excerpt's place; where it differs in what was told already, or in the prompt that it goes on from, the answer is refused instead.
    ///
    /// A later window is judged with the replacement in it, so a guard should allow what it writes.
    Replace {
        /// The text.
        text: String,
        /// Why.
        finding: Finding,
    },
    /// The text may not pass: the prompt is not computed, the answer ends.
    Refuse(Finding),
}

/// What a guard found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Its kind, in the guard's own terms.
    pub category: String,
    /// Why, in words. They are told to the caller and kept, so they must not quote the text.
    pub reason: String,
}

impl Verdict {
    /// Refuses.
    pub fn refuse(category: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Refuse(Finding { category: category.into(), reason: reason.into() })
    }

    /// Lets another text pass.
    pub fn replace(text: impl Into<String>, category: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Replace {
            text: text.into(),
            finding: Finding { category: category.into(), reason: reason.into() },
        }
    }
}

/// What became of a text that a guard did not simply allow. It holds nothing of the text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Judgement {
    /// The guard, by its place in the order in which they were added.
    pub guard: usize,
    /// Which text.
    pub side: Side,
    /// The message's place in its dialog; 0 for a prompt and for an answer.
    pub message: usize,
    /// What became of it.
    pub outcome: Outcome,
    /// As the guard says; empty where it failed.
    pub category: String,
    /// As the guard says, or how it failed.
    pub reason: String,
}

/// What became of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// Another text passed in its place.
    Replaced,
    /// It was refused.
    Refused,
    /// It was refused because the guard failed.
    Failed,
    /// It was refused because the guard would have replaced what was told already (a larger [`HoldBack`] tells later), or the prompt that it goes on
    /// from.
    ReplacedTooLate,
}

/// How much of an answer is held back until it is judged.
///
/// It sets when a stream speaks, and how often the guards are asked. Guards see whole words, of at most 64 characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HoldBack {
    /// Whole sentences and lines are judged, and told then. The default.
    #[default]
    Sentence,
    /// The answer is judged every so many characters, and told so many characters behind: of what is refused, as far as it is no longer,
    /// not even the beginning is told.
    Characters(usize),
    /// Nothing is told before the whole answer is judged, once.
    Answer,
}

/// A guard of a closure. One that can fail implements [`Guard`].
///
/// ```
/// use llama_core::{Side, Verdict, guard_fn};
///
/// let guard = guard_fn(|excerpt| match excerpt.side {
///     Side::Input if excerpt.text.len() > 10_000 => Verdict::refuse("length", "a message of more than 10 kB"),
///     _ => Verdict::Allow,
/// });
/// ```
pub fn guard_fn(judge: impl Fn(&Excerpt<'_>) -> Verdict + Send + Sync) -> impl Guard {
    struct Closure<F>(F);
    impl<F: Fn(&Excerpt<'_>) -> Verdict + Send + Sync> Guard for Closure<F> {
        fn judge(&self, excerpt: &Excerpt<'_>) -> Result<Verdict, GuardError> {
            Ok((self.0)(excerpt))
        }
    }
    Closure(judge)
}

impl fmt::Debug for Excerpt<'_> {
    /// Everything but what was said.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { text, prompt_len, side, role, before } = self;
        let mut out = f.debug_struct("Excerpt");
        out.field("bytes", &text.len())
            .field("prompt_len", prompt_len)
            .field("side", side)
            .field("role", role);
        out.field("before", &before.len()).finish()
    }
}

/// The guards of a [`Llama`], in order.
#[derive(Clone, Default)]
pub(crate) struct Guards {
    list: Arc<[Arc<dyn Guard>]>,
    pub(crate) hold_back: HoldBack,
}

/// What came of all guards.
#[derive(Debug)]
pub(crate) struct Ruling {
    /// What may pass; `None`: nothing.
    pub(crate) text: Option<String>,
    pub(crate) judgements: Vec<Judgement>,
}

impl Guards {
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(crate) fn push(&mut self, guard: Arc<dyn Guard>) {
        self.list = self.list.iter().cloned().chain([guard]).collect();
    }

    /// Asks one after the other; the first `told` bytes of the text cannot be changed any more.
    pub(crate) fn rule(&self, excerpt: Excerpt<'_>, told: usize) -> Ruling {
        let mut text = excerpt.text.to_owned();
        let mut judgements = Vec::new();
        for (guard, judge) in self.list.iter().enumerate() {
            let mut judged = |outcome, Finding { category, reason }| {
                let (side, message) = match excerpt.side {
                    Side::Input => (Side::Input, excerpt.before.len()),
                    Side::Output => (Side::Output, 0),
                };
                judgements.push(Judgement { guard, side, message, outcome, category, reason });
            };
            let (outcome, finding) = match judge.judge(&Excerpt { text: &text, ..excerpt }) {
                Ok(Verdict::Allow) => continue,
                Ok(Verdict::Replace { text: other, .. }) if other == text => continue,
                Ok(Verdict::Replace { text: other, finding }) if other.starts_with(&text[..told]) => {
                    text = other;
                    judged(Outcome::Replaced, finding);
                    continue;
                }
                Ok(Verdict::Replace { finding, .. }) => (Outcome::ReplacedTooLate, finding),
                Ok(Verdict::Refuse(finding)) => (Outcome::Refused, finding),
                Err(error) => {
                    let reason = format!("the guard failed: {error}");
                    (Outcome::Failed, Finding { category: String::new(), reason })
                }
            };
            judged(outcome, finding);
            return Ruling { text: None, judgements };
        }
        Ruling { text: Some(text), judgements }
    }
}

impl fmt::Debug for Guards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guards").field("len", &self.list.len()).field("hold_back", &self.hold_back).finish()
    }
}

impl Llama {
    /// The same model, guarded: every message and prompt that goes in, and every answer that comes out, is judged by this guard after those that
    /// are there already. In a batch each row is judged alone. The model itself is shared with the one it was made from, which is guarded as before.
    ///
    /// What is refused ends with [`FinishReason::Guarded`](crate::FinishReason::Guarded): a prompt before it is computed, with an empty answer; an
    /// answer where it stands, with what was told. It appears nowhere: no text, token or logprob of it is told, nor kept by a [`Session`](crate::Session).
    /// Alternatives (`top_logprobs`) of the tokens that are told are not judged.
    /// A call's `deadline` runs from when its prompts were judged; what guards take of an answer's time is not taken off it.
    ///
    /// ```no_run
    /// use llama_core::{ChatOptions, Dialog, FinishReason, HoldBack, Llama, WordList};
    ///
    /// let llama = Llama::build("llama-2-7b-chat", "tokenizer.model", 512, 8)?
    ///     .with_guard(WordList::open("words.txt")?)
    ///     .with_hold_back(HoldBack::Characters(80));
    /// let answers = llama.chat_completion(&[Dialog::new("Hello")], &ChatOptions::default())?;
    /// if answers[0].finish_reason == FinishReason::Guarded {
    ///     println!("{:?}", answers[0].judgements);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn with_guard(mut self, guard: impl Guard + 'static) -> Self {
        self.guards_mut().push(Arc::new(guard));
        self
    }

    /// How much of an answer its guards hold back; without a guard, nothing is. Default: [`HoldBack::Sentence`].
    #[must_use]
    pub fn with_hold_back(mut self, hold_back: HoldBack) -> Self {
        self.guards_mut().hold_back = hold_back;
        self
    }
}
