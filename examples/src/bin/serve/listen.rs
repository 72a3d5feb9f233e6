//! Takes connections, and lets them end.
//!
//! axum's own loop leaves out what a server in front of users needs: how many connections there may be, how long a client may take
//! for its headers, how long it may leave unread what it is sent, and an end of the shutdown. So the loop is here, and the protocol hyper's.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use crate::app::App;
use crate::body;
use crate::patient::{Due, Patient};

/// For a request's headers, and for a connection that is kept open to be used again.
const HEADER_TIME: Duration = Duration::from_secs(30);
/// For a client to take some of what it is sent.
const WRITE_TIME: Duration = Duration::from_secs(30);
/// For what is cancelled to be said.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What connections may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) max_connections: usize,
    /// For an answer, which a client may then have left unread for some more.
    pub(crate) deadline: Duration,
    /// For what is begun at a shutdown.
    pub(crate) grace: Duration,
}

/// Serves until `stop`; then lets what is begun go on for `grace`, or until `hurry`, and cancels what is left.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    app: Arc<App>,
    limits: Limits,
    stop: impl Future<Output = ()>,
    hurry: impl Future<Output = ()>,
) {
    let graceful = GracefulShutdown::new();
    until(stop, accept(&listener, &router, &graceful, limits)).await;
    drop(listener);
    app.closing.store(true, Ordering::Relaxed);
    let mut ended = pin!(graceful.shutdown());
    if let Ok(Some(())) = timeout(limits.grace, until(hurry, ended.as_mut())).await {
        return;
    }
    crate::log("answers that are not complete are cancelled");
    app.cancel.cancel();
    let _ = timeout(LAST_WORDS, ended).await;
}

/// What comes of the work; `None` where the end comes first.
async fn until<T>(end: impl Future<Output = ()>, work: impl Future<Output = T>) -> Option<T> {
    let (mut end, mut work) = (pin!(end), pin!(work));
    poll_fn(|context| match (end.as_mut().poll(context), work.as_mut().poll(context)) {
        (_, Poll::Ready(done)) => Poll::Ready(Some(done)),
        (Poll::Ready(()), Poll::Pending) => Poll::Ready(None),
        _ => Poll::Pending,
    })
    .await
}

async fn accept(
    listener: &TcpListener,
    router: &Router,
    graceful: &GracefulShutdown,
    Limits { max_connections, deadline, .. }: Limits,
) {
    let response_time = body::TIME + deadline + WRITE_TIME;
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIME);
    let connections = Arc::new(Semaphore::new(max_connections));
    loop {
        // Who comes when there are too many waits to be accepted.
        let Ok(place) = Arc::clone(&connections).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // The client is gone already, or there are no file descriptors left: later there may be.
                crate::log(&format!("a connection could not be accepted: {error}"));
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Without it a token waits for the client to confirm the one before.
        let _ = stream.set_nodelay(true);
        let (due, routes) = (Due::default(), TowerToHyperService::new(router.clone()));
        let stream = Patient::new(stream, WRITE_TIME, due.clone());
        let service = service_fn(move |request| {
            due.set(Instant::now() + response_time);
            routes.call(request)
        });
        let connection = http.serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // What goes wrong with a connection is the client's affair.
            let _ = connection.await;
            drop(place);
        });
    }
}
