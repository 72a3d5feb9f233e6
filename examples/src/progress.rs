//! How far a program is, on standard error, where somebody looks.

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};

/// A bar of so many steps, which goes away when it is dropped. Nothing is shown where standard error is no terminal.
#[must_use]
pub fn bar(what: &'static str, steps: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} {bar:30} {percent} %, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar()); // never: the template is one
    ProgressBar::new(steps as u64).with_style(style).with_prefix(what).with_finish(ProgressFinish::AndClear)
}
