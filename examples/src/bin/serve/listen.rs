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
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::app::App;
use crate::patient::Patient;

/// For a request's headers, and for a connection that is kept open to be used again.
const HEADER_TIME: Duration = Duration::from_secs(30);
/// For a client to take what it is sent.
const WRITE_TIME: Duration = Duration::from_secs(30);
/// For what is cancelled to be said.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Serves until `stop`; then lets what is begun go on for `grace`, or until `hurry`, and cancels what is left.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    app: Arc<App>,
    max_connections: usize,
    grace: Duration,
    stop: impl Future<Output = ()>,
    hurry: impl Future<Output = ()>,
) {
    let graceful = GracefulShutdown::new();
    until(stop, accept(&listener, &router, &graceful, max_connections)).await;
    drop(listener);
    app.closing.store(true, Ordering::Relaxed);
    let mut ended = pin!(graceful.shutdown());
    if let Ok(Some(())) = timeout(grace, until(hurry, ended.as_mut())).await {
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
    max_connections: usize,
) {
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
        let service = TowerToHyperService::new(router.clone());
        let connection = http.serve_connection(TokioIo::new(Patient::new(stream, WRITE_TIME)), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // What goes wrong with a connection is the client's affair.
            let _ = connection.await;
            drop(place);
        });
    }
}
