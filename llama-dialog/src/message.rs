//! Who speaks, and what is said.
//!
//! The JSON form is the reference's and everybody's: `{"role": "user", "content": "…"}`. A message whose role has not
//! been checked yet is a type of its own, [`RawMessage`], so that a bad role inside a dialog is reported with its place.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Who speaks.
///
/// ```
/// use llama_dialog::Role;
///
/// assert_eq!(serde_json::to_string(&Role::User)?, r#""user""#);
/// assert_eq!(Role::Assistant.to_string(), "assistant");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sets the scene; the first message of a dialog, or absent.
    System,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// Every role there is.
    ///
    /// ```
    /// use llama_dialog::Role;
    ///
    /// assert!(Role::ALL.iter().all(|&role| Role::from_name(role.as_str()) == Some(role)));
    /// ```
    pub const ALL: [Role; 3] = [Role::System, Role::User, Role::Assistant];

    /// The role's name in JSON.
    ///
    /// ```
    /// assert_eq!(llama_dialog::Role::System.as_str(), "system");
    /// ```
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }

    /// The role of that exact, case-sensitive name.
    ///
    /// ```
    /// use llama_dialog::Role;
    ///
    /// assert_eq!(Role::from_name("user"), Some(Role::User));
    /// assert_eq!(Role::from_name("User"), None);
    /// ```
    pub fn from_name(name: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.as_str() == name)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One message: who says what.
///
/// ```
/// use llama_dialog::Message;
///
/// let message: Message = serde_json::from_str(r#"{"role": "user", "content": "Hello"}"#)?;
/// assert_eq!(message, Message::user("Hello"));
/// assert_eq!(serde_json::to_string(&message)?, r#"{"role":"user","content":"Hello"}"#);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said, as it was written: nothing is stripped before the dialog is rendered.
    pub content: String,
}

impl Message {
    /// A message of that role.
    ///
    /// ```
    /// use llama_dialog::{Message, Role};
    ///
    /// assert_eq!(Message::new(Role::User, "Hello"), Message::user("Hello"));
    /// ```
    pub fn new(role: Role, content: impl Into<String>) -> Message {
        Message { role, content: content.into() }
    }

    /// A system prompt.
    ///
    /// ```
    /// assert_eq!(llama_dialog::Message::system("Answer in rhyme").role.as_str(), "system");
    /// ```
    pub fn system(content: impl Into<String>) -> Message {
        Message::new(Role::System, content)
    }

    /// Something the user says.
    ///
    /// ```
    /// assert_eq!(llama_dialog::Message::user("Hello").content, "Hello");
    /// ```
    pub fn user(content: impl Into<String>) -> Message {
        Message::new(Role::User, content)
    }

    /// Something the model said.
    ///
    /// ```
    /// assert_eq!(llama_dialog::Message::assistant("Hi!").role.as_str(), "assistant");
    /// ```
    pub fn assistant(content: impl Into<String>) -> Message {
        Message::new(Role::Assistant, content)
    }
}

/// A message as it came from outside: its role is any string until a [`Dialog`](crate::Dialog) has been made of it.
///
/// `Dialog`'s `Deserialize` goes through this type. Use it directly to get the typed [`DialogError`](crate::DialogError)
/// and not only its text, which is all that a deserialiser's error can carry.
///
/// ```
/// use llama_dialog::{Dialog, DialogError, Expected, RawMessage};
///
/// let raw: Vec<RawMessage> = serde_json::from_str(r#"[{"role": "tool", "content": "42"}]"#)?;
/// let error = Dialog::try_from(raw).unwrap_err();
/// assert_eq!(
///     error,
///     DialogError::UnknownRole { index: 0, found: "tool".into(), expected: Expected::SystemOrUser },
/// );
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RawMessage {
    /// What stands where a role should.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl From<Message> for RawMessage {
    fn from(message: Message) -> RawMessage {
        RawMessage { role: message.role.as_str().to_owned(), content: message.content }
    }
}
