//! The operations among processes, to the bit, and jobs that go wrong, which end.
//!
//! Without an argument this starts itself under `mpirun`, once for each job below; with one it is a rank of that job.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod jobs;

use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use jobs::Job;
use llama_backend::{Communicator, CommunicatorError, Phase};
use llama_parallel_mpi::{MpiCommunicator, MpiError};

fn main() -> ExitCode {
    jobs::run(&[
        Job { name: "operations", sizes: &[1, 2, 3, 4], rank: operations, fails: None },
        Job { name: "threads", sizes: &[2], rank: threads, fails: None },
        Job {
            name: "aborts",
            sizes: &[2, 4],
            rank: aborts,
            fails: Some("ends the job: the disk is on fire"),
        },
        Job { name: "dies", sizes: &[2, 4], rank: dies, fails: Some("signal 9") },
        Job {
            name: "leaves",
            sizes: &[2],
            rank: leaves,
            fails: Some("ends the job: it left before the job was done"),
        },
        Job { name: "panics", sizes: &[2], rank: panics, fails: Some("a panic of a rank") },
        Job {
            name: "finishes_alone",
            sizes: &[2, 4],
            rank: finishes_alone,
            fails: Some("is at the loading of a model where others are at the end of the job"),
        },
    ])
}

fn operations(mpi: Arc<MpiCommunicator>) -> ExitCode {
    let (rank, size) = (mpi.rank(), mpi.size());
    assert_eq!(mpi.ranks_on_host(), size);
    // Sizes of either way to sum, and more than is summed at a time; in any other order the bits would differ.
    for len in [0, 1, 5, 2730, 2731, 4096, 4097, 8192, 8193, 100_003, (1 << 20) + 9] {
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
    let error = mpi.broadcast(size, &mut [0]).unwrap_err();
    assert!(matches!(error, CommunicatorError::Root { root, .. } if root == size), "{error}");
    mpi.barrier().unwrap();
    // Who is late is waited for.
    if rank == 0 {
        std::thread::sleep(Duration::from_millis(50));
    }
    mpi.broadcast(0, &mut [0; 4]).unwrap();

    assert!(matches!(MpiCommunicator::init(), Err(MpiError::Initialised)));
    let other = Arc::clone(&mpi);
    let Err(MpiError::InUse { handles: 1, communicator }) = mpi.finish() else { panic!("it is in use") };
    drop(other);
    // MPI ends where it began.
    let elsewhere = std::thread::spawn(move || communicator.finish());
    let Err(MpiError::Thread { communicator }) = elsewhere.join().unwrap() else { panic!("another thread") };
    communicator.finish().unwrap();
    ExitCode::SUCCESS
}

/// Rank 0 ends the job where the others wait for a model.
fn finishes_alone(mpi: Arc<MpiCommunicator>) -> ExitCode {
    if mpi.rank() > 0 {
        panic!("{:?}", Phase::Build.begin(&*mpi)); // not come to: the job has ended
    }
    mpi.finish().unwrap();
    ExitCode::SUCCESS
}

/// Threads are divided among the ranks of a host.
fn threads(mpi: Arc<MpiCommunicator>) -> ExitCode {
    let mut threads = [mpi.n_threads() as f32];
    assert!(threads[0] >= 1.0 && mpi.n_threads_unbound() >= 1);
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
