//! Why a list of messages is not a dialog.
//!
//! Every variant says which message, what was found there and what would have been right, so that a caller can point at
//! the message and not only at the request.

use std::fmt;

use thiserror::Error;

use crate::Role;

/// The first fault of a list of messages that is not a dialog.
///
/// The reference raises an `AssertionError`, or an `IndexError` where it had not thought of the case; here each is a
/// variant with its numbers.
///
/// ```
/// use llama_dialog::{Dialog, Message};
///
/// let error = Dialog::try_from(vec![Message::user("Hi"), Message::user("Hello?")]).unwrap_err();
/// assert_eq!(error.index(), Some(1));
/// assert_eq!(error.to_string(), "message 1 is from user, expected assistant");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum DialogError {
    /// There is no message at all.
    #[error("a dialog needs at least one message, from user")]
    Empty,
    /// A role that does not exist. Names are case-sensitive.
    #[error("message {index} has the unknown role {found:?}, expected {expected}")]
    UnknownRole {
        /// Position of the message, from 0.
        index: usize,
        /// What stands in its role.
        found: String,
        /// Who was to speak.
        expected: Expected,
    },
    /// The wrong one speaks.
    #[error("message {index} is from {found}, expected {expected}")]
    UnexpectedRole {
        /// Position of the message, from 0.
        index: usize,
        /// Who speaks.
        found: Role,
        /// Who was to speak.
        expected: Expected,
    },
    /// The messages stop where there is nothing to answer.
    #[error("message {index}, the last one, is from {found}, expected user")]
    LastNotUser {
        /// Position of the last message, from 0.
        index: usize,
        /// Who speaks last.
        found: Role,
    },
    /// The messages of a [`Conversation`](crate::Conversation) stop before the last one was answered.
    #[error("message {index}, the last one, is from user, expected assistant: it was not answered")]
    Unanswered {
        /// Position of the last message, from 0.
        index: usize,
    },
}

impl DialogError {
    /// The position of the message at fault, from 0; `None` where there is none.
    ///
    /// ```
    /// use llama_dialog::{Dialog, DialogError, Message};
    ///
    /// assert_eq!(DialogError::Empty.index(), None);
    /// let error = Dialog::try_from([Message::system("Be brief")]).unwrap_err();
    /// assert_eq!(error.index(), Some(0));
    /// ```
    pub fn index(&self) -> Option<usize> {
        match self {
            DialogError::Empty => None,
            DialogError::UnknownRole { index, .. }
            | DialogError::UnexpectedRole { index, .. }
            | DialogError::LastNotUser { index, .. }
            | DialogError::Unanswered { index } => Some(*index),
        }
    }
}

/// Who may speak at a place of a dialog.
///
/// ```
/// use llama_dialog::{Expected, Role};
///
/// assert!(Expected::SystemOrUser.allows(Role::System));
/// assert!(!Expected::User.allows(Role::System));
/// assert_eq!(Expected::SystemOrUser.to_string(), "system or user");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Expected {
    /// The first message: a system prompt or the user.
    SystemOrUser,
    /// The user, after a system prompt or an answer.
    User,
    /// The model, after the user.
    Assistant,
}

impl Expected {
    /// Whether that role may speak here.
    ///
    /// ```
    /// assert!(llama_dialog::Expected::User.allows(llama_dialog::Role::User));
    /// ```
    pub fn allows(self, role: Role) -> bool {
        match self {
            Expected::SystemOrUser => role != Role::Assistant,
            Expected::User => role == Role::User,
            Expected::Assistant => role == Role::Assistant,
        }
    }

    /// Who may speak after that one.
    pub(crate) fn after(role: Role) -> Expected {
        match role {
            Role::System | Role::Assistant => Expected::User,
            Role::User => Expected::Assistant,
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Expected::SystemOrUser => "system or user",
            Expected::User => "user",
            Expected::Assistant => "assistant",
        })
    }
}
