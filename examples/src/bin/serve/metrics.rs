//! [`Metrics`]: what Prometheus is told, in its text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use llama_core::{EngineStats, Judgement, Outcome, Side};

/// Upper bounds of the buckets, in seconds.
const SECONDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// How often each took how long.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    /// Those up to each bound and above the one before; the last above all.
    buckets: [AtomicU64; SECONDS.len() + 1],
    microseconds: AtomicU64,
}

/// Counters by their labels, which are few: routes, states, categories of the guards.
type Counters = Mutex<BTreeMap<String, u64>>;

#[derive(Debug, Default)]
pub(crate) struct Metrics {
    responses: Counters,
    judgements: Counters,
    /// From a request's arrival to its first text.
    pub(crate) first_text: Histogram,
    /// From a request's arrival to the end of its answers.
    completed: Histogram,
    abandoned: AtomicU64,
}

impl Histogram {
    pub(crate) fn observe(&self, time: Duration) {
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

    pub(crate) fn judged(&self, judgements: &[Judgement]) {
        for judgement in judgements {
            let side = match judgement.side {
                Side::Input => "input",
                Side::Output => "output",
            };
            let outcome = match judgement.outcome {
                Outcome::Replaced => "replaced",
                Outcome::Failed => "failed",
                _ => "refused",
            };
            let category = escaped(&judgement.category);
            add(&self.judgements, format!("side=\"{side}\",outcome=\"{outcome}\",category=\"{category}\""));
        }
    }

    /// A request is over: its answers are complete, or nobody wants them any more.
    pub(crate) fn answered(&self, time: Duration, is_complete: bool) {
        if is_complete {
            self.completed.observe(time);
        } else {
            self.abandoned.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// All of it.
    pub(crate) fn text(&self, stats: EngineStats, in_flight: usize) -> String {
        let out = &mut String::new();
        counters(out, "serve_responses_total", "Responses by route and status.", &self.responses);
        counters(out, "serve_guard_judgements_total", "What guards did not simply allow.", &self.judgements);
        self.first_text.write(
            out,
            "serve_time_to_first_text_seconds",
            "From a request's arrival to its first text.",
        );
        self.completed.write(
            out,
            "serve_answer_seconds",
            "From a request's arrival to the end of its answers.",
        );
        let abandoned = self.abandoned.load(Ordering::Relaxed);
        let EngineStats {
            slots, running, waiting, prefilled_tokens, cached_tokens, generated_tokens, ..
        } = stats;
        let plain = [
            ("serve_abandoned_total", "counter", "Requests that ended before their answers did.", abandoned),
            ("serve_requests_in_flight", "gauge", "Requests that are being answered.", in_flight as u64),
            ("llama_slots", "gauge", "Slots of the KV cache.", slots as u64),
            ("llama_running", "gauge", "Prompts that hold a slot.", running as u64),
            ("llama_waiting", "gauge", "Prompts that wait for a slot.", waiting as u64),
            ("llama_admitted_total", "counter", "Prompts that were given a slot.", stats.admitted),
            (
                "llama_prefilled_tokens_total",
                "counter",
                "Tokens of prompts that were computed.",
                prefilled_tokens,
            ),
            (
                "llama_cached_tokens_total",
                "counter",
                "Tokens of prompts that were in the KV cache.",
                cached_tokens,
            ),
            ("llama_generated_tokens_total", "counter", "Tokens of answers.", generated_tokens),
        ];
        for (name, kind, help, value) in plain {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        }
        std::mem::take(out)
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
