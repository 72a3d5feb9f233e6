//! Jobs of several ranks: a test without a harness starts itself under `mpirun`, once for each job and number of ranks, and is one of the ranks
//! where it is given a job's name.

use std::process::{Command, ExitCode, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::MpiCommunicator;

/// A job that goes wrong ends within this.
const PATIENCE: Duration = Duration::from_secs(10);
/// Seconds after which `mpirun` ends a job that hangs, which is an error.
const LIMIT: &str = "120";

pub(crate) struct Job {
    pub(crate) name: &'static str,
    /// On how many ranks.
    pub(crate) sizes: &'static [usize],
    /// What a rank does.
    pub(crate) rank: fn(Arc<MpiCommunicator>) -> ExitCode,
    /// What the job says where it is to fail.
    pub(crate) fails: Option<&'static str>,
}

/// The test's `main`.
pub(crate) fn run(jobs: &[Job]) -> ExitCode {
    // The test runner's own arguments are none of the jobs.
    let name = std::env::args().nth(1);
    if let Some(job) = jobs.iter().find(|job| Some(job.name) == name.as_deref()) {
        return (job.rank)(MpiCommunicator::init().unwrap());
    }
    for job in jobs {
        for &size in job.sizes {
            job.check(size);
        }
    }
    ExitCode::SUCCESS
}

impl Job {
    fn check(&self, size: usize) {
        let started = Instant::now();
        let output = self.mpirun(size);
        let took = started.elapsed();
        print!("{}", String::from_utf8_lossy(&output.stdout));
        println!("{} on {size} ranks: {:.1} s", self.name, took.as_secs_f64());
        let said = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
        assert_eq!(output.status.success(), self.fails.is_none(), "{}: {said}", output.status);
        if let Some(why) = self.fails {
            assert!(said.contains(why), "no {why:?} in {said}");
            assert!(took < PATIENCE, "it took {took:?}: {said}");
        }
    }

    /// Ranks beyond the processors, and root, as in a container, are asked for in Open MPI's words; MPICH allows both.
    fn mpirun(&self, size: usize) -> Output {
        Command::new("mpirun")
            .args(["-n", &size.to_string()])
            .arg(std::env::current_exe().unwrap())
            .arg(self.name)
            .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
            .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
            .env("OMPI_MCA_rmaps_base_oversubscribe", "1")
            .env("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe")
            .env("MPIEXEC_TIMEOUT", LIMIT)
            .output()
            .expect("mpirun, of Debian's openmpi-bin or another MPI")
    }
}
