//! [`ThreadCommunicator`]: ranks that are threads of one process, for the tests of engines and of whatever stands above them.
//!
//! Every operation is one exchange: each rank lays down what it has, and when the last has done so all read everything. Ranks that do
//! different things, a rank that leaves and one that never comes are errors for those who wait, never a hang.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::{Communicator, CommunicatorError};

/// How long a rank waits for the others: far longer than any test's step, so that a test that goes wrong ends.
const PATIENCE: Duration = Duration::from_secs(60);

/// One of several ranks that are threads.
///
/// ```
/// use llama_backend::Communicator;
/// use llama_backend::testing::ThreadCommunicator;
///
/// let ranks = ThreadCommunicator::group(3).map(|rank| {
///     std::thread::spawn(move || {
///         let mut data = [1.0, rank.rank() as f32];
///         rank.all_reduce_sum(&mut data).unwrap();
///         data
///     })
/// });
/// for sums in ranks.collect::<Vec<_>>() {
///     assert_eq!(sums.join().unwrap(), [3.0, 3.0]);
/// }
/// ```
#[derive(Debug)]
pub struct ThreadCommunicator {
    rank: usize,
    size: usize,
    meeting: Arc<Meeting>,
    in_use: AtomicBool,
    /// Calls of this rank: all-reduces, and all others.
    calls: [AtomicUsize; 2],
}

#[derive(Debug)]
struct Meeting {
    round: Mutex<Round>,
    changed: Condvar,
}

/// What the ranks have laid down.
#[derive(Debug)]
struct Round {
    /// What this round is: the first rank's operation.
    operation: Option<String>,
    laid: Vec<Option<Data>>,
    /// Everything, once the last rank has come.
    complete: Option<Arc<Vec<Data>>>,
    /// Ranks that have not read it yet.
    unread: usize,
    aborted: Option<(usize, String)>,
}

#[derive(Debug)]
enum Data {
    Numbers(Vec<f32>),
    Bytes(Vec<u8>),
}

impl ThreadCommunicator {
    /// So many ranks, in their order, each for a thread of its own.
    pub fn group(size: usize) -> impl Iterator<Item = Arc<Self>> {
        let round = Round {
            operation: None,
            laid: (0..size).map(|_| None).collect(),
            complete: None,
            unread: 0,
            aborted: None,
        };
        let meeting = Arc::new(Meeting { round: Mutex::new(round), changed: Condvar::new() });
        (0..size).map(move |rank| {
            let (meeting, in_use, calls) = (Arc::clone(&meeting), AtomicBool::new(false), Default::default());
            Arc::new(Self { rank, size, meeting, in_use, calls })
        })
    }

    /// How often this rank has reduced.
    #[must_use]
    pub fn all_reduces(&self) -> usize {
        self.calls[0].load(Ordering::Relaxed)
    }

    /// How often it has done anything else.
    #[must_use]
    pub fn other_calls(&self) -> usize {
        self.calls[1].load(Ordering::Relaxed)
    }

    fn exchange(&self, operation: String, own: Data) -> Result<Arc<Vec<Data>>, CommunicatorError> {
        let is_reduce = operation.starts_with("all_reduce");
        self.calls[usize::from(!is_reduce)].fetch_add(1, Ordering::Relaxed);
        // The round before is over when all have read it.
        let mut round = self.wait(self.lock(), |round| round.complete.is_none())?;
        if let Some((rank, message)) = round.aborted.clone() {
            return Err(CommunicatorError::Aborted { rank, message });
        }
        let expected = round.operation.get_or_insert_with(|| operation.clone()).clone();
        if operation != expected {
            let error = CommunicatorError::OutOfStep { rank: self.rank, found: operation, expected };
            round.aborted.get_or_insert((self.rank, error.to_string()));
            self.meeting.changed.notify_all();
            return Err(error);
        }
        round.laid[self.rank] = Some(own);
        if round.laid.iter().all(Option::is_some) {
            round.complete = Some(Arc::new(round.laid.iter_mut().filter_map(Option::take).collect()));
            round.unread = self.size;
            self.meeting.changed.notify_all();
        } else {
            round = self.wait(round, |round| round.complete.is_some())?;
        }
        let all = round.complete.clone().unwrap_or_default(); // complete: just waited for
        round.unread -= 1;
        if round.unread == 0 {
            (round.complete, round.operation) = (None, None);
            self.meeting.changed.notify_all();
        }
        Ok(all)
    }

    fn wait<'a>(
        &self,
        round: MutexGuard<'a, Round>,
        until: impl Fn(&Round) -> bool,
    ) -> Result<MutexGuard<'a, Round>, CommunicatorError> {
        let goes_on = |round: &mut Round| !until(round) && round.aborted.is_none();
        let waited = self.meeting.changed.wait_timeout_while(round, PATIENCE, goes_on);
        let (round, _) = waited.unwrap_or_else(PoisonError::into_inner);
        // What was complete before the end is still to be read.
        if until(&round) {
            return Ok(round);
        }
        let (rank, message) = round.aborted.clone().unwrap_or((self.rank, "waited in vain".to_owned()));
        Err(CommunicatorError::Aborted { rank, message })
    }

    fn lock(&self) -> MutexGuard<'_, Round> {
        // Nothing in here panics half-way.
        self.meeting.round.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Communicator for ThreadCommunicator {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_reduce_sum(&self, data: &mut [f32]) -> Result<(), CommunicatorError> {
        let all = self.exchange(format!("all_reduce_sum of {}", data.len()), Data::Numbers(data.to_vec()))?;
        for (rank, part) in all.iter().enumerate() {
            let Data::Numbers(part) = part else { continue }; // one operation, one kind
            match rank {
                0 => data.copy_from_slice(part),
                _ => data.iter_mut().zip(part).for_each(|(sum, x)| *sum += x),
            }
        }
        Ok(())
    }

    fn all_gather(&self, own: &[f32], lens: &[usize], all: &mut [f32]) -> Result<(), CommunicatorError> {
        CommunicatorError::check_gather(self, own, lens, all)?;
        let parts = self.exchange(format!("all_gather of {lens:?}"), Data::Numbers(own.to_vec()))?;
        let mut all = all;
        for part in parts.iter() {
            let Data::Numbers(part) = part else { continue };
            let (these, rest) = all.split_at_mut(part.len());
            these.copy_from_slice(part);
            all = rest;
        }
        Ok(())
    }

    fn broadcast(&self, root: usize, data: &mut [u8]) -> Result<(), CommunicatorError> {
        CommunicatorError::check_root(self, root)?;
        let own = if root == self.rank { data.to_vec() } else { Vec::new() };
        let all = self.exchange(format!("broadcast of {} from {root}", data.len()), Data::Bytes(own))?;
        if let Some(Data::Bytes(bytes)) = all.get(root) {
            data.copy_from_slice(bytes);
        }
        Ok(())
    }

    fn barrier(&self) -> Result<(), CommunicatorError> {
        self.exchange("barrier".to_owned(), Data::Bytes(Vec::new())).map(drop)
    }

    fn abort(&self, message: &str) {
        self.lock().aborted.get_or_insert((self.rank, message.to_owned()));
        self.meeting.changed.notify_all();
    }

    fn in_use(&self) -> &AtomicBool {
        &self.in_use
    }
}

impl Drop for ThreadCommunicator {
    fn drop(&mut self) {
        self.abort("it has left");
    }
}
