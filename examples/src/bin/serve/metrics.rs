//! [`Metrics`]: what Prometheus is told, in its text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use llama_core::EngineStats;

/// Upper bounds of the buckets, in seconds.
const SECONDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// How often each took how long.
#[derive(Debug, Default)]
struct Histogram {
    /// Those up to each bound and above the one before; the last above all.
    buckets: [AtomicU64; SECONDS.len() + 1],
    microseconds: AtomicU64,
}

/// Counters by their labels, which are few: routes, states, categories of the guards.
type Counters = Mutex<BTreeMap<String, u64>>;

#[derive(Debug, Default)]
pub(crate) struct Metrics {
    responses: Counters,
    /// By [`Outcome`].
    requests: [AtomicU64; OUTCOMES.len()],
    judgements: Counters,
    first_text: Histogram,
    answered: Histogram,
}

/// How a request for answers has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All its answers are complete, those that a guard ended included.
    Complete,
    /// Nobody wanted them any more.
    ClientGone,
    /// Its time was up.
    Deadline,
    /// It failed, and the fault is the server's.
    Error,
    /// The server stopped.
    Shutdown,
    /// It was not begun: it was wrong, a guard refused it, or there was no room.
    Refused,
}

/// Their names, in their order.
const OUTCOMES: [&str; 6] = ["complete", "client_gone", "deadline", "error", "shutdown", "refused"];

/// A request for answers that is under way: however it ends, that is counted when this is dropped.
#[derive(Debug)]
pub(crate) struct Underway {
    metrics: Arc<Metrics>,
    arrived: Instant,
    has_text: bool,
    outcome: Outcome,
}

impl Underway {
    /// A request that has arrived now.
    pub(crate) fn new(metrics: &Arc<Metrics>) -> Self {
        let (metrics, arrived) = (Arc::clone(metrics), Instant::now());
        // As long as nobody says otherwise, it ends because nobody asks for more.
        Self { metrics, arrived, has_text: false, outcome: Outcome::ClientGone }
    }

    /// There is text of an answer.
    pub(crate) fn has_text(&mut self) {
        if !std::mem::replace(&mut self.has_text, true) {
            self.metrics.first_text.observe(self.arrived.elapsed());
        }
    }

    pub(crate) fn ended(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.metrics.requests[self.outcome as usize].fetch_add(1, Ordering::Relaxed); // there is one for each
        if matches!(self.outcome, Outcome::Complete | Outcome::Deadline) {
            self.metrics.answered.observe(self.arrived.elapsed());
        }
    }
}

impl Histogram {
    fn observe(&self, time: Duration) {
        let bucket = SECONDS.partition_point(|bound| *bound < time.as_secs_f64());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed); // at most as many as bounds, and there is one more
        let microseconds = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.microseconds.fetch_add(microseconds, Ordering::Relaxed);
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        let mut count = 0;
        for (bound, bucket) in
            SECONDS.iter().map(f64::to_string).chain(["+Inf".to_owned()]).zip(&self.buckets)
        {
            count += bucket.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let sum = self.microseconds.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(out, "{name}_sum {sum}\n{name}_count {count}");
    }
}

impl Metrics {
    pub(crate) fn responded(&self, route: &str, status: u16) {
        add(&self.responses, format!("route=\"{route}\",status=\"{status}\""));
    }

    pub(crate) fn judged(&self, side: &str, outcome: &str, category: &str) {
        let category = escaped(category);
        add(&self.judgements, format!("side=\"{side}\",outcome=\"{outcome}\",category=\"{category}\""));
    }

    /// All of it, as Prometheus reads it.
    pub(crate) fn exposition(&self, stats: EngineStats, in_flight: usize) -> String {
        let mut out = String::new();
        counters(&mut out, "serve_responses_total", "Responses by route and status.", &self.responses);
        let name = "serve_requests_total";
        let _ = writeln!(out, "# HELP {name} Requests for answers by how they ended.\n# TYPE {name} counter");
        for (outcome, count) in OUTCOMES.iter().zip(&self.requests) {
            let _ = writeln!(out, "{name}{{outcome=\"{outcome}\"}} {}", count.load(Ordering::Relaxed));
        }
        let help = "What guards did not simply allow.";
        counters(&mut out, "serve_guard_judgements_total", help, &self.judgements);
        let help = "From a request's arrival to the first text of an answer.";
        self.first_text.write(&mut out, "serve_time_to_first_text_seconds", help);
        let help = "From a request's arrival to the end of its answers.";
        self.answered.write(&mut out, "serve_answer_seconds", help);
        let EngineStats {
            slots,
            running,
            waiting,
            admitted,
            prefilled_tokens,
            cached_tokens,
            generated_tokens,
            ..
        } = stats;
        let in_cache = "Tokens of prompts that were in the KV cache.";
        let plain = [
            ("serve_answers_in_flight", "gauge", "Answers that have a place.", in_flight as u64),
            ("llama_slots", "gauge", "Slots of the KV cache.", slots as u64),
            ("llama_running", "gauge", "Prompts that hold a slot.", running as u64),
            ("llama_waiting", "gauge", "Prompts that wait for a slot.", waiting as u64),
            ("llama_admitted_total", "counter", "Prompts that were given a slot.", admitted),
            ("llama_prefilled_tokens_total", "counter", "Tokens of prompts computed.", prefilled_tokens),
            ("llama_cached_tokens_total", "counter", in_cache, cached_tokens),
            ("llama_generated_tokens_total", "counter", "Tokens of answers.", generated_tokens),
        ];
        for (name, kind, help, value) in plain {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        }
        out
    }
}

fn add(counters: &Counters, labels: String) {
    // A count is whole at every instruction that could panic.
    *counters.lock().unwrap_or_else(PoisonError::into_inner).entry(labels).or_default() += 1;
}

fn counters(out: &mut String, name: &str, help: &str, counters: &Counters) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter");
    for (labels, count) in &*counters.lock().unwrap_or_else(PoisonError::into_inner) {
        let _ = writeln!(out, "{name}{{{labels}}} {count}");
    }
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
