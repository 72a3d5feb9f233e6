//! What was found: tables in Markdown, beside those of Llama 2's makers, or JSON.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use crate::multiple_choice::MultipleChoice;
use crate::perplexity::Perplexity;
use crate::toxicity::Toxicity;
use crate::truthful::Truthfulness;

/// Llama-2-Chat in Touvron et al. 2023 (<https://arxiv.org/abs/2307.09288>), table 14: per cent of answers truthful and informative, and toxic.
const PUBLISHED: [(&str, f64, f64); 3] =
    [("Llama-2-Chat 7B", 57.04, 0.00), ("Llama-2-Chat 13B", 62.18, 0.00), ("Llama-2-Chat 70B", 64.14, 0.01)];

const NOTE: &str = "\
The published numbers (Touvron et al. 2023, table 14) are those of the whole data sets, TruthfulQA's 817 questions behind six questions with
answers, and a revised ToxiGen; truth was judged by two GPT-3 models taught to, toxicity by a RoBERTa classifier taught on ToxiGen. Numbers
of other prompts, judges or guards are no more than a hint beside them.";

#[derive(Serialize)]
pub(crate) struct Report {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) multiple_choice: Option<MultipleChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) perplexity: Option<Perplexity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) toxicity: Option<Toxicity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) truthfulness: Option<Truthfulness>,
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { multiple_choice, perplexity, toxicity, truthfulness } = self;
        writeln!(f, "| evaluation | of | result |\n| --- | --- | ---: |")?;
        if let Some(MultipleChoice { questions, mc1, mc2 }) = multiple_choice {
            row(f, "MC1", n(*questions, "question"), per_cent(*mc1))?;
            row(f, "MC2", n(*questions, "question"), per_cent(*mc2))?;
        }
        if let Some(Perplexity { tokens, windows, perplexity, bits_per_byte, .. }) = perplexity {
            let of = format!("{} in {}", n(*tokens, "token"), n(*windows, "window"));
            row(f, "perplexity", &of, format!("{perplexity:.4}"))?;
            row(f, "bits per byte", &of, format!("{bits_per_byte:.4}"))?;
        }
        if let Some(Toxicity { all, groups }) = toxicity {
            let groups = groups.iter().map(|(group, count)| (format!("toxic: {group}"), *count));
            for (name, count) in [("toxic".to_owned(), *all)].into_iter().chain(groups) {
                let of = answers(count.prompts, count.refused, count.not_judged);
                row(f, name.replace('|', "\\|"), of, per_cent_or_none(count.share()))?;
            }
        }
        if let Some(truthfulness) = truthfulness {
            let Truthfulness { questions, refused, not_judged, .. } = truthfulness;
            let Truthfulness { truthful, informative, truthful_and_informative, .. } = truthfulness;
            let shares =
                [("truthful", truthful), ("informative", informative), ("both", truthful_and_informative)];
            for (name, share) in shares {
                row(f, name, answers(*questions, *refused, *not_judged), per_cent_or_none(*share))?;
            }
        }
        if toxicity.is_some() || truthfulness.is_some() {
            self.beside_published(f)?;
        }
        Ok(())
    }
}

impl Report {
    fn beside_published(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n| model | truthful and informative | toxic |\n| --- | ---: | ---: |")?;
        let both = self.truthfulness.as_ref().and_then(|truthfulness| truthfulness.truthful_and_informative);
        let toxic = self.toxicity.as_ref().and_then(|toxicity| toxicity.all.share());
        row(f, "this one", per_cent_or_none(both), per_cent_or_none(toxic))?;
        for (model, both, toxic) in PUBLISHED {
            row(f, model, per_cent(both / 100.0), per_cent(toxic / 100.0))?;
        }
        writeln!(f, "\n{NOTE}")
    }
}

fn row(f: &mut Formatter<'_>, first: impl Display, second: impl Display, third: impl Display) -> fmt::Result {
    writeln!(f, "| {first} | {second} | {third} |")
}

fn per_cent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

fn per_cent_or_none(share: Option<f64>) -> String {
    share.map_or("–".to_owned(), per_cent)
}

/// What was asked, and what of it counts in no share.
fn answers(asked: usize, refused: usize, not_judged: usize) -> String {
    let mut of = n(asked, "answer");
    for (n, what) in [(refused, "refused"), (not_judged, "not judged")] {
        if n > 0 {
            of.push_str(&format!(", {n} {what}"));
        }
    }
    of
}

fn n(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
