//! The operations among processes, to the bit, and jobs that go wrong, which end.
//!
//! Without an argument this starts itself under `mpirun`, once for each job below; with one it is a rank of that job.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

use std::process::{Command, ExitCode, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use llama_backend::{Communicator, CommunicatorError};
use llama_parallel_mpi::{MpiCommunicator, MpiError};

/// A job that goes wrong ends within this.
const PATIENCE: Duration = Duration::from_secs(10);

type Rank = fn(Arc<MpiCommunicator>) -> ExitCode;

/// What a rank does, on how many of them, and what the job says where it is to fail.
const JOBS: &[(&str, Rank, &[usize], Option<&str>)] = &[
    ("operations", operations, &[1, 2, 3, 4], None),
    ("threads", threads, &[2], None),
    ("aborts", aborts, &[2, 4], Some("ends the job: the disk is on fire")),
    ("dies", dies, &[2, 4], Some("signal 9")),
    ("leaves", leaves, &[2], Some("ends the job: it left before the job was done")),
    ("panics", panics, &[2], Some("a panic of a rank")),
];

fn main() -> ExitCode {
    let name = std::env::args().nth(1);
    // The test runner's own arguments are none of the jobs.
    if let Some((_, rank, ..)) = JOBS.iter().find(|(job, ..)| Some(*job) == name.as_deref()) {
        return rank(MpiCommunicator::init().unwrap());
    }
    for (name, _, sizes, fails) in JOBS {
        for &size in *sizes {
            let started = Instant::now();
            let output = mpirun(name, size);
            let took = started.elapsed();
            println!("{name} on {size} ranks: {:.1} s", took.as_secs_f64());
            let said = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
            assert_eq!(output.status.success(), fails.is_none(), "{}: {said}", output.status);
            if let Some(why) = fails {
                assert!(said.contains(why), "no {why:?} in {said}");
                assert!(took < PATIENCE, "it took {took:?}: {said}");
            }
        }
    }
    ExitCode::SUCCESS
}

/// Ranks beyond the processors, and root, as in a container, are asked for in Open MPI's words; MPICH allows both.
fn mpirun(job: &str, size: usize) -> Output {
    Command::new("mpirun")
        .args(["-n", &size.to_string()])
        .arg(std::env::current_exe().unwrap())
        .arg(job)
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env("OMPI_MCA_rmaps_base_oversubscribe", "1")
        .env("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe")
        .output()
        .expect("mpirun, of Debian's openmpi-bin or another MPI")
}

fn operations(mpi: Arc<MpiCommunicator>) -> ExitCode {
    let (rank, size) = (mpi.rank(), mpi.size());
    assert_eq!(mpi.ranks_on_host(), size);
    // Sizes of either way to sum, and more than is summed at a time; in any other order the bits would differ.
    for len in [0, 1, 5, 4096, 8193, 100_003, (1 << 20) + 9] {
        let number = |rank: usize, i: usize| {
            let small = ((i * 31 + rank * 17) % 101) as f32 / 7.0;
            if (i + rank).is_multiple_of(3) { small * 1e7 } else { small - 1e7 * (rank % 2) as f32 }
        };
        let mut data: Vec<f32> = (0..len).map(|i| number(rank, i)).collect();
        mpi.all_reduce_sum(&mut data).unwrap();
        for (i, &sum) in data.iter().enumerate() {
            let expected = (1..size).fold(number(0, i), |sum, rank| sum + number(rank, i));
            assert_eq!(sum.to_bits(), expected.to_bits(), "{i} of {len} on {size} ranks");
        }
    }
    let lens: Vec<usize> = (0..size).map(|rank| rank * 3).collect(); // the first has nothing
    let mut all = vec![f32::NAN; lens.iter().sum()];
    mpi.all_gather(&vec![rank as f32; rank * 3], &lens, &mut all).unwrap();
    assert_eq!(all, (0..size).flat_map(|rank| vec![rank as f32; rank * 3]).collect::<Vec<_>>());
    // More than one message each.
    let len = (1 << 18) + 3;
    let number = |rank: usize, i: usize| (i * size + rank) as f32;
    let own: Vec<f32> = (0..len).map(|i| number(rank, i)).collect();
    let mut all = vec![f32::NAN; len * size];
    mpi.all_gather(&own, &vec![len; size], &mut all).unwrap();
    assert!((0..size).all(|rank| (0..len).all(|i| all[rank * len + i] == number(rank, i))));
    let error = mpi.all_gather(&[1.0], &vec![2; size], &mut vec![0.0; 2 * size]).unwrap_err();
    assert!(matches!(error, CommunicatorError::Lengths { what: "own", .. }), "{error}");
    for root in 0..size {
        let mut told = vec![rank as u8; 1000];
        mpi.broadcast(root, &mut told).unwrap();
        assert_eq!(told, [root as u8; 1000]);
    }
    mpi.barrier().unwrap();
    // Who is late is waited for.
    if rank == 0 {
        std::thread::sleep(Duration::from_millis(50));
    }
    mpi.broadcast(0, &mut [0; 4]).unwrap();

    assert!(matches!(MpiCommunicator::init(), Err(MpiError::Initialised)));
    let other = Arc::clone(&mpi);
    assert!(matches!(other.finish(), Err(MpiError::InUse { handles: 1 })));
    mpi.finish().unwrap();
    ExitCode::SUCCESS
}

/// Threads are divided among the ranks of a host.
fn threads(mpi: Arc<MpiCommunicator>) -> ExitCode {
    let mut threads = [mpi.n_threads() as f32];
    assert!(threads[0] >= 1.0);
    mpi.all_reduce_sum(&mut threads).unwrap();
    let all = std::fs::read_to_string("/proc/cpuinfo")
        .map_or(usize::MAX, |info| info.matches("processor\t").count());
    assert!(threads[0] as usize <= all.max(mpi.size()), "{threads:?} of {all}");
    mpi.finish().unwrap();
    ExitCode::SUCCESS
}

fn aborts(mpi: Arc<MpiCommunicator>) -> ExitCode {
    if mpi.rank() + 1 == mpi.size() {
        mpi.abort("the disk is on fire");
    }
    let _ = mpi.all_reduce_sum(&mut [1.0; 100]);
    panic!("nobody is to sum with");
}

fn dies(mpi: Arc<MpiCommunicator>) -> ExitCode {
    if mpi.rank() + 1 == mpi.size() {
        let _ = Command::new("kill").args(["-9", &std::process::id().to_string()]).status();
    }
    let _ = mpi.broadcast(mpi.size() - 1, &mut [1; 100]);
    panic!("nobody is to tell");
}

fn leaves(mpi: Arc<MpiCommunicator>) -> ExitCode {
    if mpi.rank() == 0 {
        mpi.barrier().unwrap();
    }
    ExitCode::SUCCESS
}

fn panics(mpi: Arc<MpiCommunicator>) -> ExitCode {
    if mpi.rank() == 1 {
        panic!("a panic of a rank");
    }
    mpi.barrier().unwrap();
    ExitCode::SUCCESS
}
