//! A network's latency between two hosts that are namespaces of this one: a relay that holds every frame, and a ping-pong that checks it.
//!
//! `delay relay /dev/tap7 /dev/tap9 --us 100` carries frames between two macvtap devices, each on one end of a pair of virtual Ethernet devices
//! whose other end is a host's: what the one receives, the other sends 100 µs later, whatever protocol and ports it belongs to. `benches/hosts/run.sh`
//! makes the devices. `delay echo` answers `delay ping`, which prints half of a round trip, in microseconds.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use benches::Error;
use clap::Parser;

/// A frame of the largest size, and what the device writes before it.
const FRAME: usize = 1 << 17;
/// How much too late the system may wake who sleeps: this long before a frame is due, the relay looks at the clock.
const WAKING: Duration = Duration::from_micros(80);

/// Latency between two network devices, and what it is.
#[derive(Debug, Parser)]
enum Command {
    /// Carries frames between two devices
    Relay {
        /// One end
        a: PathBuf,
        /// The other
        b: PathBuf,
        /// Microseconds that each frame is held
        #[arg(long, default_value_t = 0)]
        us: u64,
    },
    /// Sends back what it receives
    Echo {
        /// Where it listens
        address: String,
    },
    /// Prints half a round trip in microseconds: the median, and the 90th of a hundred
    Ping {
        /// Where an echo listens
        address: String,
        /// Bytes that go to and fro
        #[arg(long, default_value_t = 64)]
        bytes: usize,
        /// Round trips
        #[arg(long, default_value_t = 1001)]
        times: usize,
    },
}

fn main() -> ExitCode {
    benches::end(run(Command::parse()))
}

fn run(command: Command) -> Result<(), Error> {
    match command {
        Command::Relay { a, b, us } => {
            let open = |path| File::options().read(true).write(true).open(path);
            let (a, b) = (open(a)?, open(b)?);
            let delay = Duration::from_micros(us);
            thread::scope(|scope| {
                let other = scope.spawn(|| carry(&b, &a, delay));
                let one = carry(&a, &b, delay);
                one.and(other.join().unwrap_or_else(|_| Err(io::Error::other("the relay panicked"))))
            })?;
        }
        Command::Echo { address } => {
            for stream in TcpListener::bind(address)?.incoming() {
                thread::spawn(|| stream.and_then(echo));
            }
        }
        Command::Ping { address, bytes, times } => {
            let mut times = ping(TcpStream::connect(address)?, bytes, times)?;
            times.sort_unstable();
            let us = |at: usize| times.get(at).map_or(0.0, |time| time.as_secs_f64() * 5e5);
            writeln!(io::stdout(), "{:.1} {:.1}", us(times.len() / 2), us(times.len() * 9 / 10))?;
        }
    }
    Ok(())
}

/// Frames that wait, each with when it is due.
#[derive(Debug, Default)]
struct Held {
    frames: Mutex<VecDeque<(Instant, Vec<u8>)>>,
    came: Condvar,
}

/// Carries frames from one device to another until the first fails.
fn carry(from: &File, to: &File, delay: Duration) -> io::Result<()> {
    let held = Held::default();
    thread::scope(|scope| {
        scope.spawn(|| release(&held, to));
        let mut frame = vec![0; FRAME];
        loop {
            let mut from = from;
            let n = from.read(&mut frame)?;
            let due = Instant::now() + delay;
            let mut frames = held.frames.lock().unwrap_or_else(PoisonError::into_inner);
            frames.push_back((due, frame[..n].to_vec()));
            held.came.notify_one();
        }
    })
}

/// Sends frames when they are due. One that the device does not take is lost, as on a network.
fn release(held: &Held, mut to: &File) {
    loop {
        let frames = held.frames.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = held.came.wait_while(frames, |frames| frames.is_empty());
        let first = waiting.unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some((due, frame)) = first else { continue };
        thread::sleep(due.saturating_duration_since(Instant::now()).saturating_sub(WAKING));
        while Instant::now() < due {
            thread::yield_now();
        }
        let _ = to.write(&frame);
    }
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = vec![0; 1 << 16];
    loop {
        let n = stream.read(&mut bytes)?;
        if n == 0 {
            return Ok(());
        }
        stream.write_all(&bytes[..n])?;
    }
}

/// How long each round trip takes.
fn ping(mut stream: TcpStream, bytes: usize, times: usize) -> io::Result<Vec<Duration>> {
    stream.set_nodelay(true)?;
    let mut bytes = vec![0; bytes];
    let mut trip = || {
        let start = Instant::now();
        stream.write_all(&bytes)?;
        stream.read_exact(&mut bytes)?;
        Ok(start.elapsed())
    };
    (0..times).map(|_| trip()).collect()
}
