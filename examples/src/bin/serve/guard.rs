//! [`Counted`]: a guard whose findings are counted, whatever becomes of the answer that they are about.

use std::sync::Arc;

use llama_core::{Excerpt, Guard, GuardError, Side, Verdict};

use crate::metrics::Metrics;

#[derive(Debug)]
pub(crate) struct Counted<G> {
    guard: G,
    metrics: Arc<Metrics>,
}

impl<G: Guard> Counted<G> {
    pub(crate) fn new(guard: G, metrics: &Arc<Metrics>) -> Self {
        Self { guard, metrics: Arc::clone(metrics) }
    }
}

impl<G: Guard> Guard for Counted<G> {
    fn judge(&self, excerpt: &Excerpt<'_>) -> Result<Verdict, GuardError> {
        let verdict = self.guard.judge(excerpt);
        let side = match excerpt.side {
            Side::Input => "input",
            Side::Output => "output",
        };
        match &verdict {
            Ok(Verdict::Refuse(finding)) => self.metrics.judged(side, "refused", &finding.category),
            Ok(Verdict::Replace { finding, .. }) => self.metrics.judged(side, "replaced", &finding.category),
            Ok(_) => {}
            Err(_) => self.metrics.judged(side, "failed", ""),
        }
        verdict
    }
}
