//! `llama-bench`: how fast a model is, in the words of llama.cpp's program of that name.
//!
//! [`flags`] says what to measure, [`measure`] does it through the seam of engines, [`report`] prints it. Rates alone say more of
//! the machine than of the code, so that each stands beside what the machine could do in the same minute: a decode beside how fast
//! memory is read, a prefill beside how fast numbers are multiplied.

pub mod flags;
pub mod measure;
pub mod report;
pub mod work;
