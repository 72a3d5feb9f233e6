//! The operations, on MPI's: who sends what to whom, what is summed in which order, and how who waits does so.
//!
//! In an exchange every rank sends to every other directly, and all of them at once: it takes one latency, whatever the number of ranks, where the
//! library's own rings and trees take several. A sum goes one of two ways, with the same bits. Few numbers: every rank sends all of its own to all, and
//! each adds them up, in one exchange. Many: each rank is sent everybody's part of a slice, adds it up and sends the sums to all, in two exchanges of
//! `1/N` of the numbers each. Two ranks send as much either way, and take the first.

use std::thread;
use std::time::{Duration, Instant};

use mpi::Count;
use mpi::request::{Request, Scope};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator as _, Destination, Root, Source};

/// Numbers that are summed at a time on one host: what others send of them stays in a cache until it is added.
const CHUNK: usize = 1 << 17;
/// Between hosts, where each chunk takes a latency.
const FAR_CHUNK: usize = 1 << 20;
/// Numbers of one message between hosts: few enough for a library to send them at once. More it announces first, and the announcement waits behind
/// what is on its way.
const FAR_MESSAGE: usize = 1 << 13;
/// Numbers that a rank may send beyond what a sum in slices would, to spare the second exchange: as long as its latency lasts.
const SPARED: usize = 1 << 12;
/// How long a rank that waits to be told something looks before it sleeps: longer than the gap between two steps of an answer.
const SPIN: Duration = Duration::from_millis(2);
/// Its sleeps: a sixteenth of what it has waited, so that nobody sees it, and at most so long: a rank with nothing to do costs nothing.
const SLEEP: Duration = Duration::from_millis(2);

/// Sums and gathers, and the buffer for them.
pub(crate) struct Exchange {
    rank: usize,
    size: usize,
    /// Numbers that are summed at a time.
    chunk: usize,
    /// Numbers of a message.
    message: usize,
    /// What others send.
    received: Vec<f32>,
}

impl Exchange {
    pub(crate) fn new(rank: usize, size: usize, one_host: bool) -> Self {
        let (chunk, message) = if one_host { (CHUNK, CHUNK) } else { (FAR_CHUNK, FAR_MESSAGE) };
        Self { rank, size, chunk, message, received: Vec::new() }
    }

    /// The sums of all ranks' numbers, from rank 0 to the last.
    pub(crate) fn all_reduce_sum(&mut self, world: &SimpleCommunicator, data: &mut [f32]) {
        if self.size == 1 {
            return;
        }
        for data in data.chunks_mut(self.chunk) {
            if in_slices(data.len(), self.size) {
                self.sum_slices(world, data);
            } else {
                self.sum_all(world, data);
            }
        }
    }

    fn sum_all(&mut self, world: &SimpleCommunicator, data: &mut [f32]) {
        let mut parts = parts_of(room(&mut self.received, data.len() * self.size), data.len(), self.size);
        exchange(world, self.message, |_| &*data, &mut parts);
        sum(&mut parts, self.rank, data);
    }

    fn sum_slices(&mut self, world: &SimpleCommunicator, data: &mut [f32]) {
        let lens: Vec<usize> = slices(data.len(), self.size).collect();
        let own = lens[self.rank];
        let mut parts = parts_of(room(&mut self.received, own * self.size), own, self.size);
        let mut slices = split(data, &lens);
        exchange(world, self.message, |rank| &*slices[rank], &mut parts);
        sum(&mut parts, self.rank, slices[self.rank]);
        let own = std::mem::take(&mut slices[self.rank]);
        exchange(world, self.message, |_| &*own, &mut slices);
    }

    /// Gives every rank the numbers of all. The lengths were checked to fit together.
    pub(crate) fn all_gather(
        &self,
        world: &SimpleCommunicator,
        own: &[f32],
        lens: &[usize],
        all: &mut [f32],
    ) {
        let mut parts = split(all, lens);
        parts[self.rank].copy_from_slice(own);
        exchange(world, self.message, |_| own, &mut parts);
    }
}

/// What a sum sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// Exchanges one after the other: a latency each.
    pub exchanges: usize,
    /// The bytes that each rank sends, and receives.
    pub bytes: usize,
}

impl Traffic {
    /// A sum of so many numbers on so many hosts.
    #[must_use]
    pub fn of_sum(len: usize, size: usize) -> Self {
        let chunks = (0..len).step_by(FAR_CHUNK).map(|start| FAR_CHUNK.min(len - start));
        let traffic = chunks.map(|len| match in_slices(len, size) {
            true => (2, 2 * (len - len / size)),
            false => (usize::from(size > 1), len * (size - 1)),
        });
        let (exchanges, numbers) = traffic.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
        Self { exchanges, bytes: numbers * size_of::<f32>() }
    }
}

/// Whether a sum of so many numbers goes in slices.
fn in_slices(len: usize, size: usize) -> bool {
    (len * (size - 1)).saturating_sub(2 * (len - len / size)) > SPARED
}

/// Sends each other rank `sent` of it, and receives what it sends into its part; this rank's own part stays as it is.
fn exchange<'a>(
    world: &SimpleCommunicator,
    message: usize,
    sent: impl Fn(usize) -> &'a [f32],
    parts: &mut [&mut [f32]],
) {
    let (rank, size) = (world.rank() as usize, parts.len()); // never negative
    mpi::request::multiple_scope(2 * size, |scope, requests| {
        let (before, others) = parts.split_at_mut(rank);
        // Each begins with the rank after it, so that they do not all send to the same one.
        let after = others.iter_mut().enumerate().skip(1).map(|(i, part)| (rank + i, part));
        for (peer, part) in after.chain(before.iter_mut().enumerate()) {
            let peer_process = world.process_at_rank(peer as Count);
            for part in part.chunks_mut(message) {
                requests.add(peer_process.immediate_receive_into(scope, part));
            }
            for sent in sent(peer).chunks(message) {
                requests.add(peer_process.immediate_send(scope, sent));
            }
        }
        requests.wait_all(&mut Vec::with_capacity(2 * size));
    });
}

/// `own = parts[0] + parts[1] + …`, where the part at `rank` is what `own` has. The parts before it are written over.
fn sum(parts: &mut [&mut [f32]], rank: usize, own: &mut [f32]) {
    let (before, others) = parts.split_at_mut(rank);
    if let Some((first, before)) = before.split_first_mut() {
        before.iter().for_each(|part| add(first, part));
        add(own, first); // a + b is b + a
    }
    others[1..].iter().for_each(|part| add(own, part));
}

fn add(sums: &mut [f32], numbers: &[f32]) {
    sums.iter_mut().zip(numbers).for_each(|(sum, x)| *sum += x);
}

/// The first `len` numbers of a buffer that grows.
fn room(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// A part for each rank, of as many numbers each.
fn parts_of(numbers: &mut [f32], len: usize, size: usize) -> Vec<&mut [f32]> {
    split(numbers, &vec![len; size])
}

/// `n` numbers in slices for all ranks.
fn slices(n: usize, size: usize) -> impl Iterator<Item = usize> {
    (0..size).map(move |rank| n / size + usize::from(rank < n % size))
}

/// Numbers that lie one after the other, by these lengths.
fn split<'a>(mut numbers: &'a mut [f32], lens: &[usize]) -> Vec<&'a mut [f32]> {
    let split = lens.iter().map(|&len| {
        let (part, rest) = std::mem::take(&mut numbers).split_at_mut(len);
        numbers = rest;
        part
    });
    split.collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_sum_sends() {
        let of = |len, size| {
            let Traffic { exchanges, bytes } = Traffic::of_sum(len, size);
            (exchanges, bytes)
        };
        assert_eq!([of(8192, 1), of(0, 2)], [(0, 0); 2]);
        // Two ranks send all of it once; a prompt's, a chunk at a time.
        assert_eq!([of(8192, 2), of(3 << 20, 2)], [(1, 8192 * 4), (3, (3 << 20) * 4)]);
        // Few numbers to all; many in slices, an eighth of which stays.
        assert_eq!([of(512, 8), of(8192, 8)], [(1, 7 * 512 * 4), (2, 2 * 7 * 1024 * 4)]);
    }

    #[test]
    fn parts_are_added_in_the_order_of_the_ranks() {
        let numbers = [1e8_f32, 1.0, -1e8, 0.5];
        let expected = numbers[1..].iter().fold(numbers[0], |sum, x| sum + x);
        for rank in 0..numbers.len() {
            let mut received = numbers;
            received[rank] = f32::NAN; // its own is not received
            let mut own = [numbers[rank]];
            sum(&mut parts_of(&mut received, 1, numbers.len()), rank, &mut own);
            assert_eq!(own[0].to_bits(), expected.to_bits(), "rank {rank}");
        }
    }
}
