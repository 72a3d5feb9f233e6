//! The Llama 2 chat format: dialogs that are valid by construction, rendered as segments.
//!
//! The decision: a [`Dialog`] can only hold what the model was trained on (an optional system prompt, then user and
//! assistant in turn, the last word with the user), so nothing downstream checks it again. Its rendering is a list
//! of [`Segment`]s in which "beginning of sequence" and "end of sequence" are values of their own and never text, and a
//! dialog whose messages hold one of the format's own tags has no rendering at all: a message cannot pass itself off as
//! structure. The crate has no I/O, no tokenizer and no tensors.
//!
//! ```
//! use llama_dialog::{Dialog, Segment};
//!
//! let dialog = Dialog::new("I am going to Paris, what should I see?")
//!     .with_system("Always answer with Haiku")
//!     .then("The Eiffel Tower.", "What is so great about it?");
//!
//! let segments = dialog.segments()?;
//! assert_eq!(segments.len(), 5); // BOS, first turn, EOS; BOS, the turn to be answered
//! assert_eq!(segments[4], Segment::Text("[INST] What is so great about it? [/INST]".into()));
//! # Ok::<(), llama_dialog::TagFound>(())
//! ```
//!
//! What the reference (`chat_completion` of facebookresearch/llama) does is done here, to the character.

mod conversation;
mod dialog;
mod error;
mod llama2;
mod message;
mod segment;

pub use conversation::Conversation;
pub use dialog::{Dialog, Turn};
pub use error::{DialogError, Expected};
pub use llama2::{REFUSAL, SAFETY_SYSTEM_PROMPT, SpecialTag, TagFound, strip};
pub use message::{Message, RawMessage, Role};
pub use segment::Segment;
