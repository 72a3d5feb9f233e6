//! [`Patient`]: a connection that gives up on a client who does not take what it is sent: nothing for a while, or too little to be done in time.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

#[derive(Debug)]
pub(crate) struct Patient<S> {
    inner: S,
    time: Duration,
    due: Due,
    /// Runs while the client takes nothing.
    patience: Option<Pin<Box<Sleep>>>,
}

/// When a connection's client is to have the whole response; clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Due(Arc<Mutex<Option<Instant>>>);

impl Due {
    /// A request has come, whose response is to be there by then.
    pub(crate) fn set(&self, due: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(due);
    }

    fn get(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: AsyncWrite + Unpin> Patient<S> {
    /// Whoever takes nothing for `time`, or has not taken all when it is due, is given up.
    pub(crate) fn new(inner: S, time: Duration, due: Due) -> Self {
        Self { inner, time, due, patience: None }
    }

    fn write(
        &mut self,
        context: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let (now, due) = (Instant::now(), self.due.get());
        if due.is_none_or(|due| now < due) {
            if let Poll::Ready(written) = write(Pin::new(&mut self.inner), context) {
                self.patience = None;
                return Poll::Ready(written);
            }
            let end = due.map_or(now + self.time, |due| due.min(now + self.time));
            let patience = self.patience.get_or_insert_with(|| Box::pin(sleep_until(end)));
            ready!(patience.as_mut().poll(context));
        }
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().write(context, |inner, context| inner.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().write(context, |inner, context| inner.poll_write_vectored(context, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_read(context, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes, and then nothing.
    struct Reader {
        takes: usize,
    }

    impl AsyncWrite for Reader {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            match self.takes {
                0 => Poll::Pending,
                _ => {
                    self.takes -= 1;
                    Poll::Ready(Ok(1))
                }
            }
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn who_takes_nothing_is_given_up() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut patient = Patient::new(Reader { takes: 1 }, Duration::from_millis(5), Due::default());
            let mut written = Vec::new();
            for _ in 0..2 {
                let write = std::future::poll_fn(|context| Pin::new(&mut patient).poll_write(context, b"a"));
                written.push(write.await.map_err(|error| error.kind()));
            }
            assert_eq!(written, [Ok(1), Err(io::ErrorKind::TimedOut)]);
        });
    }

    #[test]
    fn who_takes_all_the_time_a_little_is_given_up_when_all_is_due() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let due = Due::default();
            let reader = Reader { takes: usize::MAX };
            let mut patient = Patient::new(reader, Duration::from_secs(1000), due.clone());
            let mut write = async || {
                let write = std::future::poll_fn(|context| Pin::new(&mut patient).poll_write(context, b"a"));
                write.await.map_err(|error| error.kind())
            };
            assert_eq!(write().await, Ok(1), "before any request nothing is due");
            due.set(Instant::now() + Duration::from_secs(1000));
            assert_eq!(write().await, Ok(1));
            due.set(Instant::now());
            assert_eq!(write().await, Err(io::ErrorKind::TimedOut));
            // And who takes nothing is not waited for longer.
            due.set(Instant::now() + Duration::from_millis(5));
            patient.inner.takes = 0;
            let write = std::future::poll_fn(|context| Pin::new(&mut patient).poll_write(context, b"a"));
            assert_eq!(write.await.map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut));
        });
    }
}
