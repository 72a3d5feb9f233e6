//! The ranks of a program that `mpirun` started, with the feature `mpi`; without it there is one.
//!
//! A process has one MPI, from the first model to the program's end: the one thing here that is global, as it is in MPI itself.

use llama_core::LlamaBuilder;

#[cfg(feature = "mpi")]
pub use with_mpi::{finish, give_up, n_threads, on_ranks};
#[cfg(not(feature = "mpi"))]
pub use without_mpi::{finish, give_up, n_threads, on_ranks};

#[cfg(feature = "mpi")]
mod with_mpi {
    use std::io::{self, Write};
    use std::process::exit;
    use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
    use std::thread;
    use std::time::{Duration, Instant};

    use llama_core::{Communicator, MpiCommunicator, MpiError};

    use super::LlamaBuilder;

    /// For threads that have the model still to let it go, when the program ends.
    const PATIENCE: Duration = Duration::from_secs(5);

    static JOB: Mutex<Option<Arc<MpiCommunicator>>> = Mutex::new(None);

    fn job() -> MutexGuard<'static, Option<Arc<MpiCommunicator>>> {
        JOB.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The builder for rank 0's part, at once. On the other ranks the process follows the model that rank 0 builds of it, and ends: this does not
    /// return. Once in a program.
    #[must_use]
    pub fn on_ranks(builder: LlamaBuilder) -> LlamaBuilder {
        let mpi = match MpiCommunicator::init() {
            Ok(mpi) => Arc::clone(job().insert(mpi)),
            Err(error) => {
                let _ = writeln!(io::stderr(), "error: {error}");
                exit(1)
            }
        };
        let (rank, bound, unbound) = (mpi.rank(), mpi.n_threads(), mpi.n_threads_unbound());
        let builder = builder.communicator(mpi);
        if rank == 0 {
            if bound * 2 <= unbound {
                let _ = writeln!(
                    io::stderr(),
                    "this rank computes on {bound} threads, since it is bound to few of its host's processors, which have room for {unbound}: see `mpirun --bind-to none`"
                );
            }
            return builder;
        }
        // An error that all ranks have: rank 0 tells it.
        let followed = builder.follow();
        finish();
        exit(i32::from(followed.is_err()))
    }

    /// The threads of a rank, where there is one of several.
    #[must_use]
    pub fn n_threads() -> Option<usize> {
        job().as_ref().map(|mpi| mpi.n_threads())
    }

    /// Ends the job, with all other ranks. Whoever has the model still is waited for, for some seconds.
    pub fn finish() {
        let Some(mut mpi) = job().take() else { return };
        let begun = Instant::now();
        loop {
            match mpi.finish() {
                Ok(()) => return,
                Err(MpiError::InUse { communicator, .. }) if begun.elapsed() < PATIENCE => {
                    mpi = communicator;
                    thread::sleep(Duration::from_millis(5));
                }
                // Nobody waits for a single rank, and its process ends.
                Err(MpiError::InUse { communicator, .. }) if communicator.size() == 1 => return,
                Err(error) => {
                    let _ = writeln!(io::stderr(), "error: {error}");
                    exit(1);
                }
            }
        }
    }

    /// Ends the job whatever the other ranks wait for: this one has an error, and has told it.
    pub fn give_up() {
        drop(job().take());
    }
}

#[cfg(not(feature = "mpi"))]
mod without_mpi {
    use std::io::{self, Write};

    use super::LlamaBuilder;

    /// What launchers tell a process of how many there are: Open MPI's, MPICH's and Slurm's words.
    const SIZES: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"];

    /// The builder as it is. Several processes would each answer: that is told.
    #[must_use]
    pub fn on_ranks(builder: LlamaBuilder) -> LlamaBuilder {
        let size = |name| std::env::var(name).ok()?.parse::<usize>().ok();
        if let Some(size) = SIZES.into_iter().find_map(size).filter(|&size| size > 1) {
            let _ = writeln!(
                io::stderr(),
                "this is one of {size} processes, and each has a model of its own: build with the feature `mpi` to split one over them"
            );
        }
        builder
    }

    /// None: there is one rank.
    #[must_use]
    pub fn n_threads() -> Option<usize> {
        None
    }

    /// Nothing: there are no other ranks.
    pub fn finish() {}

    /// Nothing: there are no other ranks.
    pub fn give_up() {}
}
