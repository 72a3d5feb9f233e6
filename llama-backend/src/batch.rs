//! What goes into a forward pass and what comes out: [`Batch`] and [`Logits`].
//!
//! Positions belong to runs, not to the batch: ragged prompts and mixed prefill and decode need no padding.

use std::fmt;

/// A token of the model's vocabulary: a row of `tok_embeddings`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct TokenId(pub u32);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<u32> for TokenId {
    fn from(id: u32) -> Self {
        Self(id)
    }
}

/// A place in the KV cache that holds one sequence: `0..n_slots`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub usize);

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The rows of logits that a run wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Want {
    /// No row: a chunk of a prompt that is not its last.
    None,
    /// The row after the last token: what the next token is sampled from.
    Last,
    /// A row after each token: what prompt logprobs are read from.
    All,
}

impl Want {
    /// How many rows of logits a run of `n_tokens` gives.
    #[must_use]
    pub fn n_rows(self, n_tokens: usize) -> usize {
        match self {
            Self::None => 0,
            Self::Last => 1,
            Self::All => n_tokens,
        }
    }
}

/// Tokens to append to one slot, at consecutive positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run<'a> {
    /// Where the sequence lives.
    pub slot: Slot,
    /// The position of the first token: the slot's present length.
    pub start_pos: usize,
    /// One token or more.
    pub tokens: &'a [TokenId],
    /// Which rows of logits to compute.
    pub want: Want,
}

impl Run<'_> {
    /// How many rows of logits the run wants.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.want.n_rows(self.tokens.len())
    }

    /// The slot's length after the run.
    #[must_use]
    pub fn end_pos(&self) -> usize {
        self.start_pos.saturating_add(self.tokens.len())
    }
}

/// The runs of one forward pass, each for a slot of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch<'a> {
    /// In the order in which the rows of logits are wanted.
    pub runs: &'a [Run<'a>],
}

impl<'a> Batch<'a> {
    /// A batch of these runs. [`Slots::check`](crate::Slots::check) says whether a model takes it.
    #[must_use]
    pub fn new(runs: &'a [Run<'a>]) -> Self {
        Self { runs }
    }

    /// The tokens of all runs together.
    #[must_use]
    pub fn n_tokens(&self) -> usize {
        self.runs.iter().map(|run| run.tokens.len()).sum()
    }

    /// The rows of logits of all runs together.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.runs.iter().map(Run::n_rows).sum()
    }

    /// Where each run's tokens stand among those of all runs, one after the other.
    pub fn spans(&self) -> impl Iterator<Item = Span> + use<'a> {
        self.runs.iter().scan(0, |first_row, run| {
            let n_tokens = run.tokens.len();
            let span = Span { slot: run.slot.0, start_pos: run.start_pos, first_row: *first_row, n_tokens };
            *first_row += n_tokens;
            Some(span)
        })
    }

    /// The rows, among the tokens of all runs, whose logits are wanted: in the order of the rows of logits.
    pub fn wanted_rows(&self) -> impl Iterator<Item = usize> + use<'a> {
        self.spans().zip(self.runs).flat_map(|(span, run)| {
            let end = span.first_row + span.n_tokens;
            end - run.n_rows()..end
        })
    }
}

/// One run of a batch, as an engine sees it that stacks the tokens of all runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The run's slot.
    pub slot: usize,
    /// The position of the run's first token.
    pub start_pos: usize,
    /// The run's first row among the tokens of all runs.
    pub first_row: usize,
    /// The run's tokens.
    pub n_tokens: usize,
}

/// Rows of logits, `[n_rows, vocab_size]` in f32; a buffer that is used again from step to step.
///
/// ```
/// use llama_backend::Logits;
///
/// let mut logits = Logits::new();
/// logits.reset(2, 3).copy_from_slice(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
/// assert_eq!(logits.row(1), Some(&[4.0, 5.0, 6.0][..]));
/// assert_eq!(logits.row(2), None);
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Logits {
    data: Vec<f32>,
    vocab_size: usize,
}

impl Logits {
    /// No rows.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes room for `[n_rows, vocab_size]` and gives it to be written; its content is unspecified.
    pub fn reset(&mut self, n_rows: usize, vocab_size: usize) -> &mut [f32] {
        self.vocab_size = vocab_size;
        self.data.resize(n_rows * vocab_size, 0.0);
        &mut self.data
    }

    /// How many rows there are.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.data.len().checked_div(self.vocab_size).unwrap_or(0)
    }

    /// Row `i`, `[vocab_size]`.
    #[must_use]
    pub fn row(&self, i: usize) -> Option<&[f32]> {
        self.rows().nth(i)
    }

    /// The rows, in the order of the batch's runs.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.data.chunks_exact(self.vocab_size.max(1))
    }

    /// All rows, `[n_rows, vocab_size]`.
    #[must_use]
    pub fn as_slice(&self) -> &[f32] {
        &self.data
    }
}
