//! Who leaves while a guard reads: the places are the work's, and what is not begun is left undone.

use std::pin::pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::{Context, Waker};
use std::time::Duration;

use llama_core::{Dialog, Excerpt, Guard, GuardError, Side, Verdict};
use tokio::runtime::Runtime;

use super::*;
use crate::access::Access;
use crate::app::Limits;
use crate::metrics::Metrics;

const PLACES: usize = 8;
const PATIENCE: Duration = Duration::from_secs(60);

/// Counts the messages that it reads, says when it begins with one, and ends when it may.
struct Slow {
    read: Arc<AtomicUsize>,
    begins: Sender<()>,
    may_end: Mutex<Receiver<()>>,
}

impl Guard for Slow {
    fn judge(&self, excerpt: &Excerpt<'_>) -> Result<Verdict, GuardError> {
        if excerpt.side == Side::Input {
            self.read.fetch_add(1, Ordering::SeqCst);
            self.begins.send(())?;
            self.may_end.lock().unwrap().recv_timeout(PATIENCE)?;
        }
        Ok(Verdict::Allow)
    }
}

/// A server with a slow guard, and its strings.
struct Scene {
    runtime: Runtime,
    app: Arc<App>,
    read: Arc<AtomicUsize>,
    begins: Receiver<()>,
    let_end: Sender<()>,
}

impl Scene {
    /// So many requests may be judged at a time.
    fn new(threads: usize) -> Self {
        let read = Arc::new(AtomicUsize::new(0));
        let ((begins, begun), (let_end, may_end)) = (channel(), channel());
        let guard = Slow { read: Arc::clone(&read), begins, may_end: Mutex::new(may_end) };
        let llama = examples::tiny_chat().unwrap().build().unwrap().with_guard(guard);
        let limits = Limits {
            max_concurrent: PLACES,
            max_queue_len: PLACES,
            max_logprobs: 0,
            max_body_bytes: 0,
            keep_alive: PATIENCE,
        };
        let access = Access::new(None, Vec::new(), None);
        let defaults = GenerationOptions::default();
        let app = App::new(
            llama,
            true,
            "tiny-chat".to_owned(),
            defaults,
            limits,
            access,
            Arc::new(Metrics::default()),
        );
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(threads)
            .build()
            .unwrap();
        Self { runtime, app: Arc::new(app), read, begins: begun, let_end }
    }

    fn submit(&self) -> impl Future<Output = Result<(BatchStream, OwnedSemaphorePermit), ApiError>> + use<> {
        let request = Request {
            model: "tiny-chat".to_owned(),
            prompts: Prompts::Dialog(Dialog::new("Hello")),
            n: 2,
            stream: None,
            options: GenerationOptions { max_gen_len: Some(2), ..Default::default() },
        };
        let (app, places) = (Arc::clone(&self.app), self.app.places(2).unwrap());
        async move { submit(&app, request, places).await }
    }

    /// Waits until all places are free.
    fn assert_idle(&self) {
        let begun = std::time::Instant::now();
        while self.app.in_flight() > 0 || self.app.llama.stats().running > 0 {
            assert!(begun.elapsed() < PATIENCE, "{} places are taken", self.app.in_flight());
            std::thread::yield_now();
        }
    }
}

/// Begins to wait, and leaves when `then` is done.
fn begin_and_leave(scene: &Scene, then: impl FnOnce()) {
    let _runtime = scene.runtime.enter();
    let mut submitted = pin!(scene.submit());
    assert!(submitted.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    then();
}

#[test]
fn who_leaves_while_a_guard_reads_has_places_until_it_has_read() {
    let scene = Scene::new(4);
    begin_and_leave(&scene, || scene.begins.recv_timeout(PATIENCE).unwrap());
    assert_eq!(scene.app.in_flight(), 2, "a guard still reads for it");
    scene.let_end.send(()).unwrap();
    scene.assert_idle();
    assert_eq!(scene.read.load(Ordering::SeqCst), 1, "asked twice, and read once");
}

#[test]
fn who_leaves_before_a_guard_reads_is_not_read_for() {
    let scene = Scene::new(1);
    let first = scene.runtime.spawn(scene.submit());
    scene.begins.recv_timeout(PATIENCE).unwrap();
    // There is no other thread to begin on.
    begin_and_leave(&scene, || assert_eq!(scene.app.in_flight(), 4));
    scene.let_end.send(()).unwrap();
    drop(scene.runtime.block_on(first).unwrap().unwrap());
    scene.assert_idle();
    assert_eq!(scene.read.load(Ordering::SeqCst), 1);
}

#[test]
fn what_is_too_long_is_refused_unread() {
    let scene = Scene::new(1);
    let prompts = Prompts::Texts(vec!["short".to_owned(), "word ".repeat(1000)]);
    let error = check_lengths(&scene.app.llama, &prompts, &GenerationOptions::default()).unwrap_err();
    assert!(matches!(error, Error::ContextOverflow { row: 1, reserved: 1, limit: 512, .. }), "{error}");
    let scored = GenerationOptions { max_gen_len: Some(0), ..Default::default() };
    let fits = Prompts::Texts(vec!["short".to_owned()]);
    assert!(check_lengths(&scene.app.llama, &fits, &scored).is_ok());
    let overflow = Error::ContextOverflow { row: 5, prompt: 600, reserved: 1, limit: 512 };
    assert!(of_prompt(overflow, 3).to_string().starts_with("prompt 1 "), "of three answers to each");
}
