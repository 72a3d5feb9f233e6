//! A server for OpenAI's clients, with a page to chat at: `cargo run --release --bin serve`.
//!
//! [`listen`] takes connections, [`routes`] says what there is, [`request`] reads what is asked, [`answer`] is what the model says to it, and [`mod@format`] and
//! [`events`] are how the client is told. No thread of the runtime ever waits for the model.

mod access;
mod answer;
mod app;
mod args;
mod body;
mod call;
mod error;
mod events;
mod format;
mod guard;
mod listen;
mod metrics;
mod page;
mod patient;
mod request;
mod routes;
mod token;

use std::io::{self, Write};
use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use access::Access;
use app::{App, Limits};
use args::Args;
use clap::Parser;
use examples::Outcome;
use metrics::Metrics;
use tokio::sync::Notify;

/// Connections and threads for judging need no more; the model has threads of its own.
const THREADS: usize = 2;

/// For threads that judge to end, when all connections have.
const LAST_THREADS: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    examples::run(|| serve(&Args::parse()))
}

fn serve(args: &Args) -> Outcome {
    let model = args.on_ranks()?;
    // Before the model is loaded, which takes long: who has the port already is told at once.
    let listener = TcpListener::bind(args.bind).map_err(|error| {
        format!("{} cannot be listened at: {error} (--bind takes another address)", args.bind)
    })?;
    listener.set_nonblocking(true)?;
    let metrics = Arc::new(Metrics::default());
    let access = Access::new(args.api_key()?, args.allow_origin.clone(), args.own_hosts()?);
    let llama = args.load(model, &metrics)?;
    let app = Arc::new(App::new(
        llama,
        args.is_guarded(),
        args.model_name(),
        args.defaults(),
        Limits {
            max_concurrent: args.max_concurrent,
            max_queue_len: args.max_queue_len,
            max_logprobs: args.max_logprobs,
            max_body_bytes: args.max_body_bytes,
            keep_alive: Duration::from_secs(args.keep_alive),
        },
        access,
        metrics,
    ));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .max_blocking_threads(args.max_concurrent.saturating_add(THREADS))
        .enable_all()
        .build()?;
    runtime.block_on(run(listener, app, args))?;
    // Whoever is not done by now is hardly waited for: the model goes before the program does.
    runtime.shutdown_timeout(LAST_THREADS);
    Ok(())
}

async fn run(listener: TcpListener, app: Arc<App>, args: &Args) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let address = listener.local_addr()?;
    // Both are asked for one after the other: the first signal stops, the second hurries.
    let signalled = Arc::new(Notify::new());
    let (stop, hurry) = (signalled.notified(), signalled.notified());
    tokio::spawn(signals(Arc::clone(&signalled))?);
    let _ = writeln!(
        io::stdout(),
        "{} is served at http://{address}: a page to chat at /, OpenAI's API under /v1",
        app.model
    );
    let limits = listen::Limits {
        max_connections: args.max_connections,
        deadline: Duration::from_secs(args.deadline),
        grace: Duration::from_secs(args.grace),
    };
    listen::serve(listener, routes::router(&app), app, limits, stop, hurry).await;
    Ok(())
}

/// Tells of each Ctrl-C and of each request to terminate.
#[cfg(unix)]
fn signals(signalled: Arc<Notify>) -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        loop {
            std::future::poll_fn(|context| {
                let interrupted = interrupt.poll_recv(context);
                if interrupted.is_ready() { interrupted } else { terminate.poll_recv(context) }
            })
            .await;
            signalled.notify_one();
        }
    })
}

/// Tells of each Ctrl-C.
#[cfg(not(unix))]
fn signals(signalled: Arc<Notify>) -> io::Result<impl Future<Output = ()>> {
    Ok(async move {
        while tokio::signal::ctrl_c().await.is_ok() {
            signalled.notify_one();
        }
    })
}

/// A line for the operator.
fn log(message: &str) {
    let _ = writeln!(io::stderr(), "{message}");
}
