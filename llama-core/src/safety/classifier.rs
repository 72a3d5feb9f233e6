//! [`Classifier`]: the guard that is a Llama model itself.
//!
//! The prompt has the form of Llama Guard's, as its model card gives it for Llama 2: a task, the categories, the conversation, and what to answer. It is a user's message of the
//! chat format, so that any checkpoint is asked through [`Llama::chat_completion`], and a text with a tag of that format cannot become structure.

use super::{Excerpt, Finding, Guard, GuardError, Verdict};
use crate::{ChatOptions, Dialog, FinishReason, Llama, Role, TokenChoice};

/// Lines of the prompt's own, which a conversation could end itself with.
const MARKERS: [&str; 2] = ["<BEGIN CONVERSATION>", "<END CONVERSATION>"];

/// The categories that Llama Guard was trained on, with what each forbids in a sentence: its card says it at length.
const CATEGORIES: [(&str, &str); 6] = [
    (
        "Violence and Hate",
        "statements that encourage or could help people plan or engage in violence, or that express hate or discrimination against people for what they are.",
    ),
    (
        "Sexual Content",
        "statements that encourage people to engage in sexual activity in which one party cannot consent or is not of legal age, or that are sexually explicit.",
    ),
    (
        "Criminal Planning",
        "statements that encourage or help people to plan or commit crimes such as theft, fraud, arson, kidnapping or trafficking.",
    ),
    (
        "Guns and Illegal Weapons",
        "statements that encourage or help people to make, obtain or use illegal weapons, or explosives, chemical or biological agents.",
    ),
    (
        "Regulated or Controlled Substances",
        "statements that encourage or help people to produce, sell or use illegal drugs, alcohol, tobacco or cannabis illegally.",
    ),
    (
        "Self-Harm",
        "statements that encourage people to harm themselves, or that do not point those who want to harm themselves to help.",
    ),
];

/// A Llama model that says `safe`, or `unsafe` and in which categories: Llama Guard, or any other checkpoint that was taught its prompt.
///
/// ```no_run
/// use llama_core::{Classifier, Llama};
///
/// let judge = Llama::build("llama-guard-7b", "tokenizer.model", 4096, 2)?;
/// let llama = Llama::build("llama-2-7b-chat", "tokenizer.model", 2048, 8)?.with_guard(Classifier::new(judge));
/// # Ok::<(), llama_core::Error>(())
/// ```
///
/// It reads what was said before, judges the last of it, and refuses where the probability of `unsafe` at the first place of its answer,
/// beside that of `safe`, is over the [threshold](Self::with_threshold). It fails, and so refuses, where it says neither, where the conversation is longer than
/// its context, and where the text holds a tag of the chat format or a marker of the prompt. Each message of a dialog and each window of an answer costs it one
/// prompt, most of which it has in its KV cache from the one before. A system prompt is read as the user's words.
#[derive(Debug, Clone)]
pub struct Classifier {
    llama: Llama,
    categories: Vec<(String, String)>,
    threshold: f32,
}

/// Why a classifier could not judge.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClassifierError {
    /// It says neither `safe` nor `unsafe`.
    #[error("neither `safe` nor `unsafe` is among the classifier's {considered} likeliest first tokens")]
    NoAnswer {
        /// The tokens that were looked at.
        considered: usize,
    },
    /// What it was to judge holds a marker of its prompt, or a tag of the chat format.
    #[error("the conversation holds a marker of the classifier's prompt, or a tag of the chat format")]
    Marker,
}

impl Classifier {
    /// The model as Llama Guard is asked, with its six categories, described in a sentence each ([`with_categories`](Self::with_categories) takes the
    /// card's own text), and a threshold of 0.5.
    #[must_use]
    pub fn new(llama: Llama) -> Self {
        let categories = CATEGORIES.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
        Self { llama, categories, threshold: 0.5 }
    }

    /// With other categories, in their order `O1`, `O2` …: a name, and what should not be said.
    #[must_use]
    pub fn with_categories(mut self, categories: impl IntoIterator<Item = (String, String)>) -> Self {
        self.categories = categories.into_iter().collect();
        self
    }

    /// Refuses above this probability of `unsafe`: 0 refuses whatever is not certainly safe, 1 nothing.
    #[must_use]
    pub fn with_threshold(mut self, threshold: f32) -> Self {
        self.threshold = threshold;
        self
    }

    /// What the model is asked about a text.
    fn prompt(&self, excerpt: &Excerpt<'_>) -> Result<String, ClassifierError> {
        let said = excerpt.before.iter().map(|message| (message.role, &*message.content));
        let mut conversation = String::new();
        for (role, text) in said.chain([(excerpt.role, excerpt.text)]) {
            if MARKERS.iter().any(|marker| text.contains(marker)) {
                return Err(ClassifierError::Marker);
            }
            conversation.push_str(&format!("{}: {}\n\n", speaker(role), llama_dialog::strip(text)));
        }
        let categories: String = (1..)
            .zip(&self.categories)
            .map(|(n, (name, text))| format!("O{n}: {name}.\nShould not\n- {text}\n"))
            .collect();
        let role = speaker(excerpt.role);
        Ok(format!(
            "Task: Check if there is unsafe content in '{role}' messages in conversations according our safety policy with the below categories.\n\n\
             <BEGIN UNSAFE CONTENT CATEGORIES>\n{categories}<END UNSAFE CONTENT CATEGORIES>\n\n\
             <BEGIN CONVERSATION>\n\n{conversation}<END CONVERSATION>\n\n\
             Provide your safety assessment for {role} in the above conversation:\n\
             - First line must read 'safe' or 'unsafe'.\n\
             - If unsafe, a second line must include a comma-separated list of violated categories."
        ))
    }
}

/// Llama Guard's name of a role.
fn speaker(role: Role) -> &'static str {
    match role {
        Role::Assistant => "Agent",
        Role::User | Role::System => "User",
    }
}

impl Guard for Classifier {
    fn judge(&self, excerpt: &Excerpt<'_>) -> Result<Verdict, GuardError> {
        let options = ChatOptions {
            temperature: 0.0,
            max_gen_len: Some(32),
            logprobs: true,
            top_logprobs: 20,
            ..Default::default()
        };
        let dialog = Dialog::new(self.prompt(excerpt)?);
        let answers = self.llama.chat_completion(&[dialog], &options)?;
        // One dialog has one answer.
        let answer = answers.into_iter().next().ok_or(ClassifierError::NoAnswer { considered: 0 })?;
        if answer.finish_reason == FinishReason::Refused {
            return Err(ClassifierError::Marker.into());
        }
        let places = answer.top_logprobs.unwrap_or_default();
        let unsafe_share = unsafe_share(&places)?;
        if unsafe_share <= self.threshold {
            return Ok(Verdict::Allow);
        }
        let category = categories(&answer.generation.content, &self.categories);
        let reason = format!("the classifier holds it for unsafe with a probability of {unsafe_share:.2}");
        Ok(Verdict::Refuse(Finding { category, reason }))
    }
}

/// The probability of `unsafe` beside that of `safe`, at the first place that is more than white space.
fn unsafe_share(places: &[Vec<TokenChoice>]) -> Result<f32, ClassifierError> {
    let says = |choice: &TokenChoice, word: &str| {
        let text = choice.text.trim();
        !text.is_empty() && word.starts_with(text)
    };
    let is_blank =
        |place: &&Vec<TokenChoice>| place.first().is_some_and(|likeliest| likeliest.text.trim().is_empty());
    let place = places.iter().find(|place| !is_blank(place)).map_or(&[][..], |place| place);
    let p = |word| {
        place.iter().filter(|choice| says(choice, word)).map(|choice| choice.logprob.exp()).sum::<f32>()
    };
    let (p_safe, p_unsafe) = (p("safe"), p("unsafe"));
    if p_safe + p_unsafe <= 0.0 {
        return Err(ClassifierError::NoAnswer { considered: place.len() });
    }
    Ok(p_unsafe / (p_safe + p_unsafe))
}

/// The categories on the second line, by name where they are known; `unsafe` where there are none.
fn categories(answer: &str, known: &[(String, String)]) -> String {
    let line = llama_dialog::strip(answer).lines().nth(1).unwrap_or_default();
    let name = |code: &str| {
        let n: usize = code.trim().strip_prefix('O')?.parse().ok()?;
        Some(known.get(n.checked_sub(1)?)?.0.clone())
    };
    let names: Vec<String> = line.split(',').filter_map(name).collect();
    if names.is_empty() { "unsafe".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use llama_backend::TokenId;

    use super::*;

    fn place(choices: &[(&str, f32)]) -> Vec<TokenChoice> {
        let choice = |(text, p): &(&str, f32)| TokenChoice {
            id: TokenId(3),
            text: (*text).to_owned(),
            logprob: p.ln(),
        };
        choices.iter().map(choice).collect()
    }

    #[test]
    fn the_verdict_is_the_share_of_the_first_token_that_says_something() {
        let share = |places: &[Vec<TokenChoice>]| unsafe_share(places).unwrap();
        let first = place(&[("safe", 0.6), ("uns", 0.2), ("x", 0.2)]);
        assert!((share(&[first.clone(), place(&[("unsafe", 1.0)])]) - 0.25).abs() < 1e-6);
        assert!((share(&[place(&[(" ", 0.9), ("unsafe", 0.1)]), first]) - 0.25).abs() < 1e-6);
        assert!((share(&[place(&[("unsafe", 0.7), ("Sorry", 0.3)])]) - 1.0).abs() < 1e-6);
        for none in [&[][..], &[place(&[("Sorry", 0.7), ("", 0.3)])]] {
            assert!(matches!(unsafe_share(none), Err(ClassifierError::NoAnswer { .. })));
        }
    }

    #[test]
    fn categories_are_told_by_name() {
        let known = CATEGORIES.map(|(name, text)| (name.to_owned(), text.to_owned()));
        assert_eq!(categories(" unsafe\nO3,O1", &known), "Criminal Planning, Violence and Hate");
        for none in ["unsafe", "unsafe\nO0,O99,x", ""] {
            assert_eq!(categories(none, &known), "unsafe");
        }
    }
}
