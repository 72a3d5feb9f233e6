//! The operations, on MPI's: what is summed in which order, and how who waits does so.
//!
//! A sum over `N` ranks goes one of two ways, with the same bits. Where that is few numbers, every rank sends all of its own to all, and each adds
//! them up, in one exchange. Else each rank is sent everybody's part of a slice, adds it up and sends the sums to all, in two exchanges of `1/N` of the numbers
//! each. Two ranks send as much either way, and take the first.

use std::thread;
use std::time::{Duration, Instant};

use llama_backend::CommunicatorError;
use mpi::Count;
use mpi::datatype::{Partition, PartitionMut};
use mpi::request::{Request, Scope};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator as _, CommunicatorCollectives, Root};

/// Numbers that are summed at a time: what others send of them stays in a cache until it is added.
const CHUNK: usize = 1 << 17;
/// Up to here, numbers that a rank sends to all others together: an exchange's latency is more than their bytes.
const FEW: usize = 1 << 13;
/// How long a rank that waits to be told something looks before it sleeps: longer than the gap between two steps of an answer.
const SPIN: Duration = Duration::from_millis(2);
/// Its sleeps: a sixteenth of what it has waited, so that nobody sees it, and at most so long: a rank with nothing to do costs nothing.
const SLEEP: Duration = Duration::from_millis(2);

/// Sums, and the buffers for them.
pub(crate) struct Exchange {
    rank: usize,
    size: usize,
    /// What others send.
    received: Vec<f32>,
    /// This rank's slice of the sums.
    slice: Vec<f32>,
}

impl Exchange {
    pub(crate) fn new(rank: usize, size: usize) -> Self {
        Self { rank, size, received: Vec::new(), slice: Vec::new() }
    }

    /// The sums of all ranks' numbers, from rank 0 to the last.
    pub(crate) fn all_reduce_sum(&mut self, world: &SimpleCommunicator, data: &mut [f32]) {
        if self.size == 1 {
            return;
        }
        for data in data.chunks_mut(CHUNK) {
            if self.size == 2 || data.len() * (self.size - 1) <= FEW {
                self.sum_all(world, data);
            } else {
                self.sum_slices(world, data);
            }
        }
    }

    fn sum_all(&mut self, world: &SimpleCommunicator, data: &mut [f32]) {
        let received = room(&mut self.received, data.len() * self.size);
        world.all_gather_into(&*data, received);
        sum(received, data);
    }

    fn sum_slices(&mut self, world: &SimpleCommunicator, data: &mut [f32]) {
        let (counts, starts) = places(slices(data.len(), self.size));
        let own = counts[self.rank] as usize;
        let received = room(&mut self.received, own * self.size);
        let (own_counts, own_starts) = places((0..self.size).map(|_| own));
        world.all_to_all_varcount_into(
            &Partition::new(&*data, &counts[..], &starts[..]),
            &mut PartitionMut::new(received, own_counts, own_starts),
        );
        let slice = room(&mut self.slice, own);
        sum(received, slice);
        world.all_gather_varcount_into(&*slice, &mut PartitionMut::new(data, counts, starts));
    }
}

/// `sums = parts[0] + parts[1] + …`, of as many numbers each.
fn sum(parts: &[f32], sums: &mut [f32]) {
    for (rank, part) in parts.chunks_exact(sums.len().max(1)).enumerate() {
        match rank {
            0 => sums.copy_from_slice(part),
            _ => sums.iter_mut().zip(part).for_each(|(sum, x)| *sum += x),
        }
    }
}

/// The first `len` numbers of a buffer that grows.
fn room(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// `n` numbers in slices for all ranks.
fn slices(n: usize, size: usize) -> impl Iterator<Item = usize> {
    (0..size).map(move |rank| n / size + usize::from(rank < n % size))
}

/// How many numbers each rank has, and where they begin, as MPI counts.
fn places(lens: impl Iterator<Item = usize>) -> (Vec<Count>, Vec<Count>) {
    let counts: Vec<Count> = lens.map(|len| len as Count).collect(); // callers keep them small
    let starts = counts.iter().scan(0, |next, &count| {
        let start = *next;
        *next += count;
        Some(start)
    });
    let starts = starts.collect();
    (counts, starts)
}

/// Gives every rank the numbers of all. The lengths were checked to fit together.
pub(crate) fn all_gather(
    world: &SimpleCommunicator,
    own: &[f32],
    lens: &[usize],
    all: &mut [f32],
) -> Result<(), CommunicatorError> {
    const LIMIT: usize = Count::MAX as usize;
    if all.len() > LIMIT {
        return Err(CommunicatorError::TooMany { found: all.len(), limit: LIMIT });
    }
    let (counts, starts) = places(lens.iter().copied());
    world.all_gather_varcount_into(own, &mut PartitionMut::new(all, counts, starts));
    Ok(())
}

/// Gives every rank the bytes of one. The others sleep while they wait: a rank with nothing to do leaves its processor alone.
pub(crate) fn broadcast(world: &SimpleCommunicator, root: usize, data: &mut [u8]) {
    let from = world.process_at_rank(root as Count);
    for data in data.chunks_mut(Count::MAX as usize) {
        mpi::request::scope(|scope| {
            wait(from.immediate_broadcast_into(scope, data));
        });
    }
}

fn wait<'a, D: ?Sized, S: Scope<'a>>(mut request: Request<'a, D, S>) {
    let start = Instant::now();
    while let Err(pending) = request.test() {
        request = pending;
        match start.elapsed() {
            waited if waited < SPIN => thread::yield_now(),
            waited => thread::sleep(SLEEP.min(waited / 16)),
        }
    }
}
