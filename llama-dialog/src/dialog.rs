//! A conversation that waits for the model's answer.
//!
//! The decision: what a dialog may look like is checked where one is made, and there only; every method keeps it so.
//! Tags inside messages are no matter of validity: a dialog with tags is a dialog that will not be rendered
//! ([`Dialog::segments`]), and an invalid list of messages is an error even where it holds tags.

use serde::{Deserialize, Serialize, Serializer};

use crate::llama2::{SpecialTag, TagFound, render};
use crate::{Conversation, DialogError, Expected, Message, RawMessage, Role, Segment};

/// A dialog: an optional system prompt, then user and assistant in turn, the user last.
///
/// Make one with [`Dialog::new`] and go on with [`then`](Dialog::then), or check a list of messages with `try_from`, or
/// deserialise a JSON list.
///
/// ```
/// use llama_dialog::{Dialog, Message};
///
/// let built = Dialog::new("Hi").with_system("Be brief").then("Hello.", "Who are you?");
/// let checked = Dialog::try_from(vec![
///     Message::system("Be brief"),
///     Message::user("Hi"),
///     Message::assistant("Hello."),
///     Message::user("Who are you?"),
/// ])?;
/// assert_eq!(built, checked);
///
/// let read: Dialog = serde_json::from_str(r#"[{"role": "user", "content": "Hi"}]"#)?;
/// assert_eq!(read, Dialog::new("Hi"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "Vec<RawMessage>")]
pub struct Dialog {
    /// Never empty, in order, the last one from the user.
    messages: Vec<Message>,
}

/// A user's message and the answer it got; the last one of a dialog has none.
///
/// ```
/// use llama_dialog::{Dialog, Turn};
///
/// let dialog = Dialog::new("Hi").then("Hello.", "Who are you?");
/// let turns: Vec<Turn<'_>> = dialog.turns().collect();
/// assert_eq!(turns[0], Turn { user: "Hi", answer: Some("Hello.") });
/// assert_eq!(turns[1], Turn { user: "Who are you?", answer: None });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Turn<'a> {
    /// What the user says.
    pub user: &'a str,
    /// What the model answered.
    pub answer: Option<&'a str>,
}

impl Dialog {
    /// A dialog that begins with what the user says.
    ///
    /// ```
    /// use llama_dialog::{Dialog, Message};
    ///
    /// assert_eq!(Dialog::new("Hi").messages(), [Message::user("Hi")]);
    /// ```
    pub fn new(user: impl Into<String>) -> Dialog {
        Dialog { messages: vec![Message::user(user)] }
    }

    /// The same dialog under that system prompt, in place of one that it has.
    ///
    /// ```
    /// use llama_dialog::Dialog;
    ///
    /// let dialog = Dialog::new("Hi").with_system("Be long").with_system("Be brief");
    /// assert_eq!(dialog.system(), Some("Be brief"));
    /// assert_eq!(dialog.messages().len(), 2);
    /// ```
    #[must_use]
    pub fn with_system(mut self, system: impl Into<String>) -> Dialog {
        let system = Message::system(system);
        match self.messages.first_mut() {
            Some(first) if first.role == Role::System => *first = system,
            _ => self.messages.insert(0, system),
        }
        self
    }

    /// The dialog one turn later: the answer it got, and what the user says to that.
    ///
    /// ```
    /// use llama_dialog::Dialog;
    ///
    /// let dialog = Dialog::new("Hi").then("Hello.", "Who are you?");
    /// assert_eq!(dialog.last_user(), "Who are you?");
    /// ```
    #[must_use]
    pub fn then(mut self, answer: impl Into<String>, user: impl Into<String>) -> Dialog {
        self.push_turn(answer, user);
        self
    }

    /// [`then`](Dialog::then) in place.
    ///
    /// ```
    /// use llama_dialog::Dialog;
    ///
    /// let mut dialog = Dialog::new("Hi");
    /// dialog.push_turn("Hello.", "Who are you?");
    /// assert_eq!(dialog, Dialog::new("Hi").then("Hello.", "Who are you?"));
    /// ```
    pub fn push_turn(&mut self, answer: impl Into<String>, user: impl Into<String>) {
        self.messages.extend([Message::assistant(answer), Message::user(user)]);
    }

    /// The messages, in order.
    ///
    /// ```
    /// assert_eq!(llama_dialog::Dialog::new("Hi").messages().len(), 1);
    /// ```
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Gives the messages back, say to add the answer and keep them.
    ///
    /// ```
    /// use llama_dialog::{Dialog, Message};
    ///
    /// let mut messages = Dialog::new("Hi").into_messages();
    /// messages.push(Message::assistant("Hello."));
    /// ```
    pub fn into_messages(self) -> Vec<Message> {
        self.messages
    }

    /// The system prompt, if there is one.
    ///
    /// ```
    /// assert_eq!(llama_dialog::Dialog::new("Hi").system(), None);
    /// ```
    pub fn system(&self) -> Option<&str> {
        self.messages.first().filter(|first| first.role == Role::System).map(|first| first.content.as_str())
    }

    /// The user's last message: the one to be answered.
    ///
    /// ```
    /// assert_eq!(llama_dialog::Dialog::new("Hi").last_user(), "Hi");
    /// ```
    pub fn last_user(&self) -> &str {
        // A dialog is never empty; the empty string stands for what cannot be.
        self.messages.last().map_or("", |last| last.content.as_str())
    }

    /// The turns, in order, without the system prompt; all but the last are answered.
    ///
    /// ```
    /// let dialog = llama_dialog::Dialog::new("Hi").then("Hello.", "Who are you?");
    /// assert_eq!(dialog.turns().filter(|turn| turn.answer.is_some()).count(), 1);
    /// ```
    pub fn turns(&self) -> impl Iterator<Item = Turn<'_>> {
        turns(&self.messages)
    }

    /// What was said before the user's last message, and that message.
    ///
    /// ```
    /// use llama_dialog::Dialog;
    ///
    /// let (conversation, message) = Dialog::new("Hi").then("Hello.", "Who are you?").split();
    /// assert_eq!((conversation.turns().len(), &*message), (1, "Who are you?"));
    /// ```
    pub fn split(mut self) -> (Conversation, String) {
        // A dialog is never empty; the empty string stands for what cannot be.
        let last = self.messages.pop().map_or_else(String::new, |last| last.content);
        (Conversation::from_checked(self.messages), last)
    }

    pub(crate) fn from_checked(messages: Vec<Message>) -> Dialog {
        Dialog { messages }
    }

    /// The first special tag in any message, whoever says it; `None` means that the dialog can be rendered.
    ///
    /// ```
    /// use llama_dialog::{Dialog, SpecialTag};
    ///
    /// let found = Dialog::new("Hi").then("Hello [INST]", "Who are you?").special_tag();
    /// assert_eq!(found.map(|found| (found.index, found.tag)), Some((1, SpecialTag::InstOpen)));
    /// ```
    pub fn special_tag(&self) -> Option<TagFound> {
        self.messages.iter().enumerate().find_map(|(index, message)| {
            SpecialTag::find(&message.content).map(|(offset, tag)| TagFound { index, offset, tag })
        })
    }

    /// The dialog in Llama 2's chat format: per turn BOS, a text that is encoded on its own, and EOS if it is answered.
    ///
    /// # Errors
    ///
    /// A message holds a special tag. The reference renders such a dialog all the same, and the tag then is structure
    /// in the model's eyes; here it has no rendering. The reference answers it with [`REFUSAL`](crate::REFUSAL).
    ///
    /// ```
    /// use llama_dialog::{Dialog, Segment};
    ///
    /// let segments = Dialog::new(" Hi ").then("Hello.", "Who are you?").segments()?;
    /// assert_eq!(segments, [
    ///     Segment::Bos,
    ///     Segment::Text("[INST] Hi [/INST] Hello. ".into()),
    ///     Segment::Eos,
    ///     Segment::Bos,
    ///     Segment::Text("[INST] Who are you? [/INST]".into()),
    /// ]);
    /// # Ok::<(), llama_dialog::TagFound>(())
    /// ```
    pub fn segments(&self) -> Result<Vec<Segment>, TagFound> {
        match self.special_tag() {
            Some(found) => Err(found),
            None => Ok(render(self)),
        }
    }
}

impl TryFrom<Vec<Message>> for Dialog {
    type Error = DialogError;

    fn try_from(messages: Vec<Message>) -> Result<Dialog, DialogError> {
        check_order(&messages)?;
        match messages.last() {
            None => Err(DialogError::Empty),
            Some(last) if last.role != Role::User => {
                Err(DialogError::LastNotUser { index: messages.len() - 1, found: last.role })
            }
            Some(_) => Ok(Dialog { messages }),
        }
    }
}

impl<const N: usize> TryFrom<[Message; N]> for Dialog {
    type Error = DialogError;

    fn try_from(messages: [Message; N]) -> Result<Dialog, DialogError> {
        Dialog::try_from(Vec::from(messages))
    }
}

impl TryFrom<Vec<RawMessage>> for Dialog {
    type Error = DialogError;

    fn try_from(raw: Vec<RawMessage>) -> Result<Dialog, DialogError> {
        Dialog::try_from(check_roles(raw)?)
    }
}

/// The turns of messages in order.
pub(crate) fn turns(messages: &[Message]) -> impl ExactSizeIterator<Item = Turn<'_>> {
    let systems = messages.iter().take_while(|message| message.role == Role::System).count();
    // Chunks of [user, assistant], and perhaps one of [user] at the end; none is empty.
    messages[systems..].chunks(2).map(|turn| Turn {
        user: &turn[0].content,
        answer: turn.get(1).map(|answer| answer.content.as_str()),
    })
}

/// Checks who speaks when, up to where the messages stop.
pub(crate) fn check_order(messages: &[Message]) -> Result<(), DialogError> {
    let mut expected = Expected::SystemOrUser;
    for (index, message) in messages.iter().enumerate() {
        let found = message.role;
        if !expected.allows(found) {
            return Err(DialogError::UnexpectedRole { index, found, expected });
        }
        expected = Expected::after(found);
    }
    Ok(())
}

/// Messages whose roles exist. Of several faults the first is reported, be it a role or its place.
pub(crate) fn check_roles(raw: Vec<RawMessage>) -> Result<Vec<Message>, DialogError> {
    let mut messages: Vec<Message> = Vec::with_capacity(raw.len());
    for (index, RawMessage { role, content }) in raw.into_iter().enumerate() {
        let Some(role) = Role::from_name(&role) else {
            let expected = messages.last().map_or(Expected::SystemOrUser, |m| Expected::after(m.role));
            check_order(&messages)?;
            return Err(DialogError::UnknownRole { index, found: role, expected });
        };
        messages.push(Message { role, content });
    }
    Ok(messages)
}

impl From<Dialog> for Vec<Message> {
    fn from(dialog: Dialog) -> Vec<Message> {
        dialog.messages
    }
}

impl Serialize for Dialog {
    /// A list of messages, as `Deserialize` reads it.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.messages.serialize(serializer)
    }
}
