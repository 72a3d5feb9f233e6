//! A conversation that waits for the user: what a chat keeps between two messages.
//!
//! The decision: a [`Dialog`] ends with the user and a [`Conversation`] with an answer, so that neither can be taken for the other.
//! Both are the same list of messages in JSON.

use serde::{Deserialize, Serialize, Serializer};

use crate::dialog::{check_order, check_roles, turns};
use crate::{Dialog, DialogError, Message, RawMessage, Role, Turn};

/// An optional system prompt, then turns that are all answered; there may be none.
///
/// ```
/// use llama_dialog::{Conversation, Dialog};
///
/// let mut conversation = Conversation::new().with_system("Be brief");
/// conversation.push_turn("Hi", "Hello.");
/// let dialog = conversation.ask("Who are you?");
/// assert_eq!(dialog, Dialog::new("Hi").with_system("Be brief").then("Hello.", "Who are you?"));
/// assert_eq!(dialog.split(), (conversation, "Who are you?".to_owned()));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "Vec<RawMessage>")]
pub struct Conversation {
    /// In order, the last one from the assistant unless nothing was said yet.
    messages: Vec<Message>,
}

impl Conversation {
    /// A conversation in which nothing was said.
    #[must_use]
    pub fn new() -> Conversation {
        Conversation::default()
    }

    pub(crate) fn from_checked(messages: Vec<Message>) -> Conversation {
        Conversation { messages }
    }

    /// The same conversation under that system prompt, in place of one that it has.
    #[must_use]
    pub fn with_system(mut self, system: impl Into<String>) -> Conversation {
        self.set_system(Some(system.into()));
        self
    }

    /// Puts this system prompt in place of the one that it has, or takes that away.
    pub fn set_system(&mut self, system: Option<String>) {
        let had = usize::from(self.system().is_some());
        self.messages.splice(..had, system.map(Message::system));
    }

    /// The system prompt, if there is one.
    #[must_use]
    pub fn system(&self) -> Option<&str> {
        self.messages.first().filter(|first| first.role == Role::System).map(|first| first.content.as_str())
    }

    /// The messages, in order.
    #[must_use]
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The turns, in order; all are answered.
    pub fn turns(&self) -> impl ExactSizeIterator<Item = Turn<'_>> {
        turns(&self.messages)
    }

    /// The dialog in which the user says this next.
    pub fn ask(&self, user: impl Into<String>) -> Dialog {
        let mut messages = self.messages.clone();
        messages.push(Message::user(user));
        Dialog::from_checked(messages)
    }

    /// Adds a turn.
    pub fn push_turn(&mut self, user: impl Into<String>, answer: impl Into<String>) {
        self.messages.extend([Message::user(user), Message::assistant(answer)]);
    }

    /// Takes the last turn back, the user's message and its answer; `None` where there is none.
    pub fn pop_turn(&mut self) -> Option<(String, String)> {
        if self.turns().len() == 0 {
            return None;
        }
        let (answer, user) = (self.messages.pop()?, self.messages.pop()?);
        Some((user.content, answer.content))
    }

    /// Forgets every turn, and keeps the system prompt.
    pub fn clear(&mut self) {
        self.messages.truncate(usize::from(self.system().is_some()));
    }
}

impl TryFrom<Vec<Message>> for Conversation {
    type Error = DialogError;

    fn try_from(messages: Vec<Message>) -> Result<Conversation, DialogError> {
        check_order(&messages)?;
        match messages.last() {
            Some(last) if last.role == Role::User => {
                Err(DialogError::Unanswered { index: messages.len() - 1 })
            }
            _ => Ok(Conversation { messages }),
        }
    }
}

impl TryFrom<Vec<RawMessage>> for Conversation {
    type Error = DialogError;

    fn try_from(raw: Vec<RawMessage>) -> Result<Conversation, DialogError> {
        Conversation::try_from(check_roles(raw)?)
    }
}

impl Serialize for Conversation {
    /// A list of messages, as `Deserialize` reads it.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.messages.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Conversation, DialogError> {
        Conversation::try_from(serde_json::from_str::<Vec<RawMessage>>(json).unwrap())
    }

    #[test]
    fn faults_name_their_message() {
        let user = r#"{"role": "user", "content": "a"}"#;
        let assistant = r#"{"role": "assistant", "content": "b"}"#;
        let list = |messages: &[&str]| read(&format!("[{}]", messages.join(",")));
        assert_eq!(list(&[]), Ok(Conversation::new()));
        assert_eq!(list(&[user]), Err(DialogError::Unanswered { index: 0 }));
        assert_eq!(list(&[user, assistant, user]).unwrap_err().index(), Some(2));
        assert!(matches!(
            list(&[user, user]),
            Err(DialogError::UnexpectedRole { index: 1, found: Role::User, .. })
        ));
        let tool = r#"{"role": "tool", "content": "c"}"#;
        assert!(matches!(list(&[user, tool]), Err(DialogError::UnknownRole { index: 1, .. })));
        assert_eq!(list(&[user, assistant]).unwrap().turns().len(), 1);
    }

    #[test]
    fn turns_come_and_go_and_the_system_prompt_stays() {
        let mut conversation = Conversation::new().with_system("s");
        assert_eq!(conversation.pop_turn(), None);
        conversation.push_turn("a", "b");
        conversation.push_turn("c", "d");
        assert_eq!(conversation.pop_turn(), Some(("c".into(), "d".into())));
        conversation.set_system(None);
        assert_eq!(conversation.ask("e"), Dialog::new("a").then("b", "e"));
        conversation.set_system(Some("t".into()));
        conversation.clear();
        assert_eq!(conversation, Conversation::new().with_system("t"));
    }
}
