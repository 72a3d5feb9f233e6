//! Steps of a model on several ranks: rank 0 tells each before it takes it ([`Leader`]), the others take what they are told ([`follow`]).
//!
//! Only what may succeed is told: rank 0 checks batches, truncations and forks against its own [`Slots`] first, so that a caller's mistake
//! costs no message. What fails after that has failed in the middle of a step that others are in, and ends the job.
//!
//! On the wire a command is 32-bit numbers, little-endian: their count, the command's kind, and its fields. The first [`FRAME`] bytes are one
//! broadcast, which a decode of a few rows fits in, and what is left another.

use crate::ranks::{Guard, Ranks};
use crate::{
    BackendError, Batch, Communicator, CommunicatorError, LoadParams, Logits, Model, ModelConfig, Notice,
    Run, Slot, Slots, TokenId, Want,
};

/// The bytes of a command's first broadcast.
const FRAME: usize = 256;

const FORWARD: u32 = 0;
const TRUNCATE: u32 = 1;
const FORK: u32 = 2;
const END: u32 = 3;

/// The model of all ranks, on rank 0.
pub(crate) struct Leader {
    model: Box<dyn Model>,
    slots: Slots,
    command: Vec<u32>,
    /// Whether the others still listen.
    in_step: bool,
    /// Gives the ranks back, after [`END`] was told and the model's memory is free: fields are dropped in their order.
    ranks: Ranks,
}

impl Leader {
    pub(crate) fn new(ranks: Ranks, model: Box<dyn Model>) -> Self {
        let slots = Slots::new(model.config(), model.params());
        Self { model, slots, command: Vec::new(), in_step: true, ranks }
    }

    /// Tells a step and takes it.
    fn step(
        &mut self,
        take: impl FnOnce(&mut dyn Model) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        let communicator = self.ranks.communicator();
        self.in_step = false; // until it is over, also by a panic
        let guard = Guard::new(communicator, "a step was taken");
        let taken = tell(communicator, &self.command).map_err(BackendError::from);
        let taken = taken.and_then(|()| take(&mut *self.model));
        guard.disarm();
        match &taken {
            Ok(()) => self.in_step = true,
            Err(error) => communicator.abort(&error.to_string()),
        }
        taken
    }
}

impl Model for Leader {
    fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    fn params(&self) -> &LoadParams {
        self.model.params()
    }

    fn notices(&self) -> &[Notice] {
        self.model.notices()
    }

    fn forward(&mut self, batch: &Batch<'_>, out: &mut Logits) -> Result<(), BackendError> {
        self.slots.check(batch)?;
        self.command.clear();
        self.command.extend([FORWARD, batch.runs.len() as u32]);
        for run in batch.runs {
            let want = match run.want {
                Want::None => 0,
                Want::Last => 1,
                Want::All => 2,
            };
            // All below 2^24, as limits are.
            self.command.extend([run.slot.0 as u32, run.start_pos as u32, want, run.tokens.len() as u32]);
            self.command.extend(run.tokens.iter().map(|token| token.0));
        }
        self.step(|model| model.forward(batch, out))?;
        self.slots.advance(batch);
        Ok(())
    }

    fn truncate(&mut self, slot: Slot, len: usize) -> Result<(), BackendError> {
        self.slots.truncate(slot, len)?;
        self.command.clear();
        self.command.extend([TRUNCATE, slot.0 as u32, len as u32]);
        self.step(|model| model.truncate(slot, len))
    }

    fn fork(&mut self, from: Slot, to: Slot, len: usize) -> Result<(), BackendError> {
        self.slots.fork(from, to, len)?;
        self.command.clear();
        self.command.extend([FORK, from.0 as u32, to.0 as u32, len as u32]);
        self.step(|model| model.fork(from, to, len))
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        if self.in_step {
            // Where it cannot be told, they have ended already.
            let _ = tell(self.ranks.communicator(), &[END]);
        }
    }
}

/// Takes the steps of rank 0 until it drops its model. An error, or a panic, ends the job.
pub(crate) fn follow(ranks: &Ranks, mut model: Box<dyn Model>) -> Result<(), BackendError> {
    let communicator = ranks.communicator();
    let guard = Guard::new(communicator, "a step was taken");
    let followed = replay(communicator, &mut *model);
    guard.disarm();
    if let Err(error) = &followed {
        communicator.abort(&error.to_string());
    }
    followed
}

fn replay(communicator: &dyn Communicator, model: &mut dyn Model) -> Result<(), BackendError> {
    let mut logits = Logits::new();
    let mut command = Vec::new();
    loop {
        hear(communicator, &mut command)?;
        match *command {
            [FORWARD, n_runs, ref runs @ ..] => {
                let tokens: Vec<TokenId> = runs.iter().copied().map(TokenId).collect();
                let runs = parse(n_runs, runs, &tokens).ok_or_else(|| garbled(&command))?;
                model.forward(&Batch::new(&runs), &mut logits)?;
            }
            [TRUNCATE, slot, len] => model.truncate(Slot(slot as usize), len as usize)?,
            [FORK, from, to, len] => model.fork(Slot(from as usize), Slot(to as usize), len as usize)?,
            [END] => return Ok(()),
            _ => return Err(garbled(&command)),
        }
    }
}

/// The runs of a command; `tokens` are the same numbers.
fn parse<'a>(n_runs: u32, mut numbers: &[u32], tokens: &'a [TokenId]) -> Option<Vec<Run<'a>>> {
    let mut runs = Vec::new();
    let mut at = 0;
    for _ in 0..n_runs {
        let ([slot, start_pos, want, n_tokens], _) = numbers.split_first_chunk()?;
        let end = 4 + *n_tokens as usize;
        let want = match want {
            0 => Want::None,
            1 => Want::Last,
            2 => Want::All,
            _ => return None,
        };
        let tokens = tokens.get(at + 4..at + end)?;
        runs.push(Run { slot: Slot(*slot as usize), start_pos: *start_pos as usize, tokens, want });
        numbers = numbers.get(end..)?;
        at += end;
    }
    numbers.is_empty().then_some(runs)
}

fn garbled(command: &[u32]) -> BackendError {
    let found = format!("the command {:?}", &command[..command.len().min(8)]);
    CommunicatorError::OutOfStep { rank: 0, found, expected: "a step of the model".to_owned() }.into()
}

/// Rank 0's part of a command.
fn tell(communicator: &dyn Communicator, command: &[u32]) -> Result<(), CommunicatorError> {
    let count = command.len() as u32;
    let mut bytes: Vec<u8> = std::iter::once(&count).chain(command).flat_map(|n| n.to_le_bytes()).collect();
    bytes.resize(bytes.len().max(FRAME), 0);
    let (frame, rest) = bytes.split_at_mut(FRAME);
    communicator.broadcast(0, frame)?;
    if rest.is_empty() { Ok(()) } else { communicator.broadcast(0, rest) }
}

/// The others' part.
fn hear(communicator: &dyn Communicator, command: &mut Vec<u32>) -> Result<(), CommunicatorError> {
    let mut bytes = vec![0; FRAME];
    communicator.broadcast(0, &mut bytes)?;
    let numbers =
        |bytes: &[u8]| -> Vec<u32> { bytes.as_chunks().0.iter().copied().map(u32::from_le_bytes).collect() };
    let count = numbers(&bytes[..4]).first().copied().unwrap_or(0) as usize;
    let len = (count + 1) * 4;
    if len > FRAME {
        bytes.resize(len, 0);
        communicator.broadcast(0, &mut bytes[FRAME..])?;
    }
    *command = numbers(&bytes[4..len]);
    Ok(())
}
