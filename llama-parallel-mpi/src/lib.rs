//! Ranks that are processes, on one host or many: [`MpiCommunicator`], a [`Communicator`] on MPI.
//!
//! Built on the crate `mpi`, which links the MPI that its compiler wrapper `mpicc` names: Open MPI and MPICH are known to it. A process has one
//! MPI, which begins with [`MpiCommunicator::init`] and ends with [`MpiCommunicator::finish`]. **A rank that leaves without it ends
//! the job**: the others would wait for it for ever. Both are called on the same thread, as MPI asks; what comes between, on any, one at a time
//! (`MPI_THREAD_SERIALIZED`).
//!
//! It speaks on `MPI_COMM_WORLD` itself: a program that has more to say to other ranks while there is a model says it on a duplicate.
//!
//! Sums are taken from rank 0 to the last, element by element, by this crate: `MPI_Allreduce` leaves the order to the library, which chooses it by the
//! number of elements, and a row would change with its neighbours.
//!
//! ```no_run
//! use llama_parallel_mpi::MpiCommunicator;
//!
//! let mpi = MpiCommunicator::init()?;
//! // `Llama::builder().communicator(mpi.clone())`, or `llama_backend::Ranks::claim(mpi.clone())`
//! mpi.finish()?;
//! # Ok::<(), llama_parallel_mpi::MpiError>(())
//! ```

mod cpus;
mod exchange;

use std::fmt;
use std::io::{self, Write};
use std::mem;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, ThreadId};

use llama_backend::{Communicator, CommunicatorError, Phase};
use mpi::Threading;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator as _, CommunicatorCollectives};

pub use exchange::Traffic;

use exchange::Exchange;

/// All ranks of the job, seen from this process.
pub struct MpiCommunicator {
    rank: usize,
    size: usize,
    ranks_on_host: usize,
    n_threads: usize,
    n_threads_unbound: usize,
    in_use: AtomicBool,
    /// The one that began MPI, and ends it.
    thread: ThreadId,
    state: Mutex<State>,
}

/// Held while MPI is called.
struct State {
    /// `None` once MPI has ended.
    universe: Option<Universe>,
    exchange: Exchange,
}

/// Why MPI could not begin or end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MpiError {
    /// A process has one MPI, and begins it once.
    #[error("MPI was initialised in this process already")]
    Initialised,
    /// A library that was built without threads.
    #[error("this MPI supports threads as {provided:?}, expected Serialized or more")]
    Threads {
        /// `MPI_THREAD_…`, as the library says.
        provided: Threading,
    },
    /// A model speaks through the communicator still.
    #[error("{handles} handles on the communicator are left beside this one: drop the model before MPI ends")]
    InUse {
        /// How many.
        handles: usize,
        /// The one that was to be the last, to try again with.
        communicator: Arc<MpiCommunicator>,
    },
    /// MPI ends on the thread that began it.
    #[error("MPI was to end on another thread than it began on")]
    Thread {
        /// The communicator, to be given to that thread.
        communicator: Arc<MpiCommunicator>,
    },
    /// A rank was at something else than the job's end.
    #[error(transparent)]
    Communicator(#[from] CommunicatorError),
}

impl MpiCommunicator {
    /// Begins MPI. A process that no `mpirun` has started is the only rank.
    ///
    /// What the library itself cannot do it says on standard error, and ends the job.
    ///
    /// # Errors
    ///
    /// [`MpiError::Initialised`], [`MpiError::Threads`].
    pub fn init() -> Result<Arc<Self>, MpiError> {
        let begun = mpi::initialize_with_threading(Threading::Serialized);
        let (universe, provided) = begun.ok_or(MpiError::Initialised)?;
        if provided < Threading::Serialized {
            return Err(MpiError::Threads { provided });
        }
        let world = universe.world();
        let (rank, size) = (world.rank() as usize, world.size() as usize); // never negative
        let host = world.split_shared(world.rank());
        let mut masks = vec![0; host.size() as usize * cpus::MASK];
        host.all_gather_into(&cpus::allowed()[..], &mut masks[..]);
        let (masks, _) = masks.as_chunks();
        let ranks_on_host = masks.len();
        let cpus = cpus::Host::read();
        let n_threads = cpus.share(masks, host.rank() as usize);
        let n_threads_unbound = cpus.even_share(ranks_on_host);
        let state = Mutex::new(State {
            universe: Some(universe),
            exchange: Exchange::new(rank, size, ranks_on_host == size),
        });
        let in_use = AtomicBool::new(false);
        let thread = thread::current().id();
        Ok(Arc::new(Self { rank, size, ranks_on_host, n_threads, n_threads_unbound, in_use, thread, state }))
    }

    /// Threads that this rank might compute on if the launcher had bound no rank of the host to processors. Where that is many more than
    /// [`n_threads`](Communicator::n_threads), processors are left alone, and the launcher wants to be told (`mpirun --bind-to none`).
    #[must_use]
    pub fn n_threads_unbound(&self) -> usize {
        self.n_threads_unbound
    }

    /// Ends MPI when every rank has come here: the job is done. On the thread that called [`init`](Self::init).
    ///
    /// # Errors
    ///
    /// [`MpiError::InUse`] while there is a handle elsewhere, a model's usually, and [`MpiError::Thread`] on another thread: both give this one back.
    /// [`MpiError::Communicator`] where another rank wants to load a model instead, which ends the job.
    pub fn finish(self: Arc<Self>) -> Result<(), MpiError> {
        if thread::current().id() != self.thread {
            return Err(MpiError::Thread { communicator: self });
        }
        let handles = Arc::strong_count(&self) - 1;
        if handles > 0 {
            return Err(MpiError::InUse { handles, communicator: self });
        }
        Phase::Finish.begin(&*self)?;
        self.lock().universe = None; // `MPI_Finalize`
        Ok(())
    }

    /// Ends the job, with an error status.
    fn leave(&self, message: &str) -> ! {
        // In one write: every rank may have something to say. Where nobody can read it, the status is left.
        let said = format!("rank {} of {} ends the job: {message}\n", self.rank, self.size);
        let _ = io::stderr().write_all(said.as_bytes());
        world().abort(1)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Its buffers are written before they are read.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs an operation, for this thread alone.
    fn with<T>(
        &self,
        operation: impl FnOnce(&mut Exchange, &SimpleCommunicator) -> T,
    ) -> Result<T, CommunicatorError> {
        let mut state = self.lock();
        if state.universe.is_none() {
            let source = "MPI has ended".into();
            return Err(CommunicatorError::Failed { operation: "MPI", source });
        }
        Ok(operation(&mut state.exchange, &world()))
    }
}

/// All ranks; `MPI_COMM_WORLD` is the same everywhere and costs nothing to name.
fn world() -> SimpleCommunicator {
    SimpleCommunicator::world()
}

impl Communicator for MpiCommunicator {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn ranks_on_host(&self) -> usize {
        self.ranks_on_host
    }

    fn n_threads(&self) -> usize {
        self.n_threads
    }

    fn all_reduce_sum(&self, data: &mut [f32]) -> Result<(), CommunicatorError> {
        self.with(|exchange, world| exchange.all_reduce_sum(world, data))
    }

    fn all_gather(&self, own: &[f32], lens: &[usize], all: &mut [f32]) -> Result<(), CommunicatorError> {
        CommunicatorError::check_gather(self, own, lens, all)?;
        self.with(|exchange, world| exchange.all_gather(world, own, lens, all))
    }

    fn broadcast(&self, root: usize, data: &mut [u8]) -> Result<(), CommunicatorError> {
        CommunicatorError::check_root(self, root)?;
        self.with(|_, world| exchange::broadcast(world, root, data))
    }

    fn barrier(&self) -> Result<(), CommunicatorError> {
        self.with(|_, world| world.barrier())
    }

    fn abort(&self, message: &str) {
        // Another thread may be in an operation that will never return: it is not waited for.
        let state = match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(state)) => Some(state.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if state.as_ref().is_some_and(|state| state.universe.is_none()) {
            return; // MPI has ended, and with it whoever could be told
        }
        self.leave(message)
    }

    fn in_use(&self) -> &AtomicBool {
        &self.in_use
    }
}

impl Drop for MpiCommunicator {
    fn drop(&mut self) {
        // This may be any thread, and MPI ends on the one that began it alone.
        let universe = self.lock().universe.take();
        if universe.is_some() && self.size > 1 {
            self.leave("it left before the job was done");
        }
        mem::forget(universe);
    }
}

impl fmt::Debug for MpiCommunicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MpiCommunicator")
            .field("rank", &self.rank)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}
