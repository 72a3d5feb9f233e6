//! [`Communicator`]: what the ranks of a model that is split over several processes say to each other.
//!
//! A rank holds some heads of every layer and some rows or columns of every matrix, and adds its part of a sum to those of the others.
//! Engines know this trait and no transport, so that threads of a test, MPI over a network and a vendor's library between devices
//! are exchanged as engines are. Numbers are added in the order of the ranks, whatever their count: a row's sum does not depend on how many rows
//! are reduced together, which is what keeps a row the same to the bit alone and in a batch.

use std::fmt;
use std::sync::atomic::AtomicBool;

/// The ranks that hold one model together, seen from one of them.
///
/// Every operation is collective: all ranks call the same ones in the same order, and each returns when it has what it is to have. After
/// an error nobody knows where the others are, and the job cannot go on.
pub trait Communicator: fmt::Debug + Send + Sync {
    /// This rank: `0..size`. Rank 0 talks to the caller, the others follow it.
    fn rank(&self) -> usize;

    /// All ranks.
    fn size(&self) -> usize;

    /// The ranks on this rank's host, itself among them: they share its memory.
    fn ranks_on_host(&self) -> usize {
        self.size()
    }

    /// Threads that this rank may compute on without taking another rank's processors.
    fn n_threads(&self) -> usize {
        let all = std::thread::available_parallelism().map_or(1, usize::from);
        (all / self.ranks_on_host().max(1)).max(1)
    }

    /// Adds the numbers of all ranks, element by element and from rank 0 to the last, and gives every rank the sums.
    ///
    /// # Errors
    ///
    /// [`CommunicatorError`], as for every operation.
    fn all_reduce_sum(&self, data: &mut [f32]) -> Result<(), CommunicatorError>;

    /// Gives every rank the numbers of all, one after the other: `lens` says how many each rank has, `own` are this rank's.
    ///
    /// # Errors
    ///
    /// [`CommunicatorError::Lengths`] where `own` or `all` has another length than `lens` says.
    fn all_gather(&self, own: &[f32], lens: &[usize], all: &mut [f32]) -> Result<(), CommunicatorError>;

    /// Gives every rank the bytes of rank `root`; all lend as many.
    ///
    /// # Errors
    ///
    /// [`CommunicatorError::Root`] where there is no such rank.
    fn broadcast(&self, root: usize, data: &mut [u8]) -> Result<(), CommunicatorError>;

    /// Waits until every rank has come here.
    ///
    /// # Errors
    ///
    /// [`CommunicatorError`].
    fn barrier(&self) -> Result<(), CommunicatorError>;

    /// Ends the job, since this rank cannot go on: ranks that are processes end with an error status and the message on standard error, this
    /// one among them; ranks of one process have every operation fail from then on.
    fn abort(&self, message: &str);

    /// Set while a model speaks through this: a second model's operations would meet the first one's. [`Ranks`](crate::Ranks) keeps it.
    /// One flag for all handles on the same ranks: a communicator that wraps another gives that one's.
    fn in_use(&self) -> &AtomicBool;
}

/// Two are as good as each other where they say so: a model's limits are compared by it.
impl PartialEq for dyn Communicator {
    fn eq(&self, other: &Self) -> bool {
        (self.rank(), self.size()) == (other.rank(), other.size())
    }
}

impl Eq for dyn Communicator {}

/// Why ranks could not do something together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommunicatorError {
    /// A rank could not go on.
    #[error("rank {rank} ended the job: {message}")]
    Aborted {
        /// The rank.
        rank: usize,
        /// What it said.
        message: String,
    },
    /// Slices that do not fit together.
    #[error("{what} has {found} elements, expected {expected}")]
    Lengths {
        /// Which.
        what: &'static str,
        /// How many elements it has.
        found: usize,
        /// How many it should have.
        expected: usize,
    },
    /// A broadcast from a rank that does not exist.
    #[error("rank {root} has nothing to tell: there are {size} ranks, counted from 0")]
    Root {
        /// The rank that was asked for.
        root: usize,
        /// All ranks.
        size: usize,
    },
    /// A call that is another rank's: rank 0 leads, the others follow it.
    #[error("`{call}` was called on rank {rank} of {size}: rank 0 leads, and the others follow")]
    Rank {
        /// The rank.
        rank: usize,
        /// All ranks.
        size: usize,
        /// What was called.
        call: &'static str,
    },
    /// Ranks that were given different models, or different choices.
    #[error("{what}: {found} on this rank, {expected} on rank 0; all ranks are to be given the same")]
    Differs {
        /// What is not the same.
        what: String,
        /// What it is on this rank.
        found: String,
        /// What it is on rank 0.
        expected: String,
    },
    /// Ranks that do different things at the same time.
    #[error("rank {rank} is at {found} where others are at {expected}")]
    OutOfStep {
        /// The rank.
        rank: usize,
        /// What it does.
        found: String,
        /// What the others do.
        expected: String,
    },
    /// A second model for the same ranks.
    #[error("these ranks have a model already: drop it before another is loaded")]
    InUse,
    /// The transport failed.
    #[error("{operation} failed: {source}")]
    Failed {
        /// The operation.
        operation: &'static str,
        /// What the transport said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl CommunicatorError {
    /// Checks the lengths of an [`all_gather`](Communicator::all_gather).
    ///
    /// # Errors
    ///
    /// [`CommunicatorError::Lengths`].
    pub fn check_gather(
        communicator: &dyn Communicator,
        own: &[f32],
        lens: &[usize],
        all: &[f32],
    ) -> Result<(), Self> {
        let check = |what, found, expected| match found == expected {
            true => Ok(()),
            false => Err(Self::Lengths { what, found, expected }),
        };
        check("lens", lens.len(), communicator.size())?;
        check("own", own.len(), lens.get(communicator.rank()).copied().unwrap_or(0))?;
        check("all", all.len(), lens.iter().fold(0, |sum, &len| sum.saturating_add(len)))
    }

    /// Checks the root of a [`broadcast`](Communicator::broadcast).
    ///
    /// # Errors
    ///
    /// [`CommunicatorError::Root`].
    pub fn check_root(communicator: &dyn Communicator, root: usize) -> Result<(), Self> {
        let size = communicator.size();
        if root < size { Ok(()) } else { Err(Self::Root { root, size }) }
    }
}

/// What ranks begin together: each says what it is at, so that ranks of which one ends the job where another loads a model are told, and do not
/// wait for each other for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// A model is loaded, and led or followed.
    Build,
    /// The job ends.
    Finish,
}

impl Phase {
    const ALL: [Self; 2] = [Self::Build, Self::Finish];

    /// Waits until every rank has begun something.
    ///
    /// # Errors
    ///
    /// [`CommunicatorError::OutOfStep`] where that is not the same: the job is [aborted](Communicator::abort), since nobody can go on.
    pub fn begin(self, communicator: &dyn Communicator) -> Result<(), CommunicatorError> {
        let size = communicator.size();
        let mut codes = vec![0.0; size];
        communicator.all_gather(&[self.code()], &vec![1; size], &mut codes)?;
        // Others are as rank 0, or it is they who are out of step.
        let Some(rank) = codes.iter().position(|&code| code != codes[0]) else { return Ok(()) };
        let name = |code: f32| {
            Self::ALL.iter().find(|phase| phase.code() == code).map_or("nothing", |phase| phase.name())
        };
        let error = CommunicatorError::OutOfStep {
            rank,
            found: name(codes[rank]).to_owned(),
            expected: name(codes[0]).to_owned(),
        };
        communicator.abort(&error.to_string());
        Err(error)
    }

    fn code(self) -> f32 {
        match self {
            Self::Build => 1.0,
            Self::Finish => 2.0,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Build => "the loading of a model",
            Self::Finish => "the end of the job",
        }
    }
}

/// One rank: a model that is not split.
#[derive(Debug, Default)]
pub struct LocalCommunicator {
    in_use: AtomicBool,
}

impl Communicator for LocalCommunicator {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_reduce_sum(&self, _: &mut [f32]) -> Result<(), CommunicatorError> {
        Ok(())
    }

    fn all_gather(&self, own: &[f32], lens: &[usize], all: &mut [f32]) -> Result<(), CommunicatorError> {
        CommunicatorError::check_gather(self, own, lens, all)?;
        all.copy_from_slice(own);
        Ok(())
    }

    fn broadcast(&self, root: usize, _: &mut [u8]) -> Result<(), CommunicatorError> {
        CommunicatorError::check_root(self, root)
    }

    fn barrier(&self) -> Result<(), CommunicatorError> {
        Ok(())
    }

    /// Nothing: there are no others to tell, and whoever calls it has an error to return.
    fn abort(&self, _: &str) {}

    fn in_use(&self) -> &AtomicBool {
        &self.in_use
    }
}
