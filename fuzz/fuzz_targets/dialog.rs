//! Dialogs and conversations in JSON.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llama_dialog::{Conversation, Dialog, RawMessage};

fuzz_target!(|json: &[u8]| {
    let raw = serde_json::from_slice::<Vec<RawMessage>>(json);
    let dialog = serde_json::from_slice::<Dialog>(json);
    let conversation = serde_json::from_slice::<Conversation>(json);
    // Typed or not, the same lists are dialogs; and no list is both.
    assert_eq!(dialog.is_ok(), raw.is_ok_and(|raw| Dialog::try_from(raw).is_ok()));
    assert!(dialog.is_err() || conversation.is_err());
    if let Ok(dialog) = dialog {
        fuzz::dialog(&dialog);
        let json = serde_json::to_vec(&dialog).unwrap();
        assert_eq!(serde_json::from_slice::<Dialog>(&json).unwrap(), dialog);
    }
    if let Ok(conversation) = conversation {
        fuzz::dialog(&conversation.ask("Hello"));
    }
});
