//! The ranks of a program that `mpirun` started, with the feature `mpi`; without it there is one.
//!
//! A process has one MPI, from the first model to the program's end: the one thing here that is global, as it is in MPI itself.

use llama_core::LlamaBuilder;

#[cfg(feature = "mpi")]
pub use with_mpi::{finish, give_up, leads, on_ranks};
#[cfg(not(feature = "mpi"))]
pub use without_mpi::{finish, give_up, leads, on_ranks};

#[cfg(feature = "mpi")]
mod with_mpi {
    use std::io::{self, Write};
    use std::process::exit;
    use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

    use llama_core::{Communicator, MpiCommunicator};

    use super::LlamaBuilder;

    static JOB: Mutex<Option<Arc<MpiCommunicator>>> = Mutex::new(None);

    fn job() -> MutexGuard<'static, Option<Arc<MpiCommunicator>>> {
        JOB.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This process's part of the job, which begins with the first to ask.
    fn part() -> Arc<MpiCommunicator> {
        let mut job = job();
        match &*job {
            Some(mpi) => Arc::clone(mpi),
            None => match MpiCommunicator::init() {
                Ok(mpi) => Arc::clone(job.insert(mpi)),
                Err(error) => {
                    let _ = writeln!(io::stderr(), "error: {error}");
                    exit(1)
                }
            },
        }
    }

    /// Whether this is rank 0, which has what there is one of: the terminal, a port.
    #[must_use]
    pub fn leads() -> bool {
        part().rank() == 0
    }

    /// The builder for rank 0's part. On the other ranks the process follows rank 0 and ends: this does not return.
    #[must_use]
    pub fn on_ranks(builder: LlamaBuilder) -> LlamaBuilder {
        let mpi = part();
        let rank = mpi.rank();
        let builder = builder.communicator(mpi);
        if rank == 0 {
            return builder;
        }
        // An error that all ranks have: rank 0 tells it.
        let followed = builder.follow();
        finish();
        exit(i32::from(followed.is_err()))
    }

    /// Ends the job, with all other ranks.
    pub fn finish() {
        let Some(mpi) = job().take() else { return };
        if let Err(error) = mpi.finish() {
            let _ = writeln!(io::stderr(), "error: {error}");
            exit(1);
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

    /// It does: there are no other ranks.
    #[must_use]
    pub fn leads() -> bool {
        true
    }

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

    /// Nothing: there are no other ranks.
    pub fn finish() {}

    /// Nothing: there are no other ranks.
    pub fn give_up() {}
}
