//! Perplexity of a text: `exp` of the mean negative logprob of its tokens, each behind as much of the text as its window has
//! ([`WindowOptions`] says how windows lie).
//!
//! It compares models of one vocabulary; bits per byte compare any.

use std::path::{Path, PathBuf};

use examples::progress;
use llama_core::{Llama, Score, TextScores, WindowOptions};
use serde::Serialize;

use crate::Result;

#[derive(Debug, Serialize)]
pub(crate) struct Perplexity {
    pub(crate) tokens: usize,
    pub(crate) windows: usize,
    /// Natural, of all tokens.
    pub(crate) logprob: f64,
    pub(crate) perplexity: f64,
    pub(crate) bits_per_byte: f64,
}

/// What is to be measured.
pub(crate) struct Text {
    path: PathBuf,
    text: String,
}

pub(crate) fn read(path: &Path) -> Result<Text> {
    let text = crate::read(path)?;
    if text.is_empty() {
        return Err(format!("{}: there is no text in it", path.display()).into());
    }
    Ok(Text { path: path.to_owned(), text })
}

impl Text {
    /// Lays the windows: what cannot be laid shows before anything is computed.
    pub(crate) fn lay(self, llama: &Llama, stride: Option<usize>) -> Result<Laid> {
        let options = WindowOptions { stride, ..Default::default() };
        let scores = llama.score_text(&self.text, options);
        Ok(Laid { scores: scores.map_err(|error| self.named(error))?, text: self })
    }

    fn named(&self, error: llama_core::Error) -> String {
        format!("{}: {error}", self.path.display())
    }
}

/// A text whose windows are ready to be scored.
pub(crate) struct Laid {
    text: Text,
    scores: TextScores,
}

pub(crate) fn evaluate(Laid { text, scores }: Laid) -> Result<Perplexity> {
    let windows = scores.len();
    let bar = progress::bar("Windows", windows);
    let scores = scores.inspect(|_| bar.inc(1)).collect::<std::result::Result<Score, _>>();
    let score = scores.map_err(|error| text.named(error))?;
    let logprob = score.logprob();
    let perplexity = score.perplexity().ok_or("no token was scored")?;
    Ok(Perplexity {
        tokens: score.tokens.len(),
        windows,
        logprob,
        perplexity,
        bits_per_byte: -logprob / std::f64::consts::LN_2 / text.text.len() as f64,
    })
}
