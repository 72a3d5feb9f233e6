//! [`Prompt`]: one row of a call on its way in, judged.

use llama_backend::TokenId;
use llama_dialog::REFUSAL;

use super::{Excerpt, Guards, Judgement, Side};
use crate::generate::FinishReason;
use crate::tokenizer::Tokenizer;
use crate::{Dialog, Error, Message};

/// One prompt of a call.
#[derive(Debug, Clone)]
pub(crate) struct Prompt {
    /// Empty where nothing is to be computed.
    pub(crate) tokens: Vec<TokenId>,
    /// Why nothing is to be computed.
    pub(crate) refused: Option<FinishReason>,
    /// What was said, as the guards left it, for those who judge the answer; nothing without guards, or where they refused.
    pub(crate) said: Vec<Message>,
    /// The text that is to be continued, as the model reads it, for the same; empty for a dialog.
    pub(crate) text: String,
    /// What the guards did not simply allow.
    pub(crate) judgements: Vec<Judgement>,
}

impl Prompt {
    /// Tokens that nobody judges.
    pub(crate) fn tokens(tokens: Vec<TokenId>) -> Self {
        Self { tokens, refused: None, said: Vec::new(), text: String::new(), judgements: Vec::new() }
    }

    /// A dialog that is to be answered. One with a special tag is refused, whoever wrote it, a guard included.
    pub(crate) fn dialog(tokenizer: &Tokenizer, guards: &Guards, dialog: &Dialog) -> Result<Self, Error> {
        if guards.is_empty() || dialog.special_tag().is_some() {
            return Ok(Self::encoded(tokenizer, dialog, Vec::new()));
        }
        let mut judgements = Vec::new();
        let Some(said) = judge(guards, dialog.messages(), &mut judgements) else {
            return Ok(Self::guarded(judgements));
        };
        let prompt = Self::encoded(tokenizer, &Dialog::try_from(said.clone())?, judgements);
        Ok(Self { said, ..prompt })
    }

    /// A text that is to be continued. It is judged as the model reads it, and an echo tells it: `▁` is a space there.
    pub(crate) fn text(tokenizer: &Tokenizer, guards: &Guards, text: &str) -> Result<Self, Error> {
        let tokens = tokenizer.encode_prompt(text);
        if guards.is_empty() {
            return Ok(Self::tokens(tokens));
        }
        let mut judgements = Vec::new();
        let read = Message::user(tokenizer.decode(&tokens)?);
        let Some(said) = judge(guards, &[read], &mut judgements) else {
            return Ok(Self::guarded(judgements));
        };
        let text: String = said.into_iter().map(|message| message.content).collect();
        let tokens = tokenizer.encode_prompt(&text);
        Ok(Self { text: tokenizer.decode(&tokens)?, judgements, ..Self::tokens(tokens) })
    }

    fn encoded(tokenizer: &Tokenizer, dialog: &Dialog, judgements: Vec<Judgement>) -> Self {
        match tokenizer.encode_dialog(dialog) {
            Ok(tokens) => Self { judgements, ..Self::tokens(tokens) },
            // What cannot be encoded holds a special tag.
            Err(_) => Self { refused: Some(FinishReason::Refused), judgements, ..Self::tokens(Vec::new()) },
        }
    }

    fn guarded(judgements: Vec<Judgement>) -> Self {
        Self { refused: Some(FinishReason::Guarded), judgements, ..Self::tokens(Vec::new()) }
    }

    /// What to compute.
    pub(crate) fn to_compute(&self) -> Option<&[TokenId]> {
        self.refused.is_none().then_some(&*self.tokens)
    }

    /// The answer to what is refused.
    pub(crate) fn refusal(reason: FinishReason) -> Option<&'static str> {
        (reason == FinishReason::Refused).then_some(REFUSAL)
    }

    /// The last message where it is not to be kept as it was given: what a guard put in its place, or nothing where something was refused.
    pub(crate) fn message(&self) -> Option<String> {
        match self.refused {
            Some(FinishReason::Guarded) => Some(String::new()),
            _ => self.said.last().map(|message| message.content.clone()),
        }
    }
}

/// Every message, from the first; `None` when one is refused.
fn judge(guards: &Guards, messages: &[Message], judgements: &mut Vec<Judgement>) -> Option<Vec<Message>> {
    let mut said: Vec<Message> = Vec::with_capacity(messages.len());
    for Message { role, content, .. } in messages {
        let excerpt = Excerpt { text: content, prompt_len: 0, side: Side::Input, role: *role, before: &said };
        let ruling = guards.rule(excerpt, 0);
        judgements.extend(ruling.judgements);
        said.push(Message::new(*role, ruling.text?));
    }
    Some(said)
}
