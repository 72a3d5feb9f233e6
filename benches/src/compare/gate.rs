//! Whether llama.cpp is at its best here, so far as that can be known: by figures of it that were taken with care on one processor.
//!
//! How it was built, its program checks itself. On the processor that the figures are of it must reach them; any other has figures of
//! its own, and then this says so.

use super::Row;

/// What can be said of a peer's figures.
#[derive(Debug, Clone, PartialEq)]
pub enum Gate {
    /// They are as known, within a tenth.
    Passed,
    /// This is another processor than that of the known figures, or another question.
    NothingKnown {
        /// The processor.
        cpu: String,
    },
}

/// A peer that is slower (or faster) than it is known to be: something is wrong with its build, or with the machine now.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "{test} of {model}: llama.cpp made {found:.1} tokens a second, and is known to make {known:.1} on {CPU}: nothing is compared"
)]
pub struct Gated {
    test: String,
    model: String,
    found: f64,
    known: f64,
}

/// Zen 3: EPYC of the third generation.
const CPU: &str = "AMD family 25 model 1";
/// TinyLlama's shape on 2 threads of it: prompts of 512 tokens, answers of 64.
const KNOWN: [(&str, f64, f64); 4] =
    [("q4_0", 58.2, 30.1), ("q8_0", 49.7, 18.4), ("q4_K_M", 62.0, 26.9), ("f16", 76.4, 11.3)];
const TOLERANCE: f64 = 0.1;

/// Holds rows of llama.cpp against what is known of it.
///
/// # Errors
///
/// [`Gated`].
pub fn gate(cpu: &str, model: &str, rows: &[Row]) -> Result<Gate, Gated> {
    let nothing = Gate::NothingKnown { cpu: cpu.to_owned() };
    if !(cpu.starts_with("AMD") && cpu.ends_with("family 25 model 1")) {
        return Ok(nothing);
    }
    let Some((_, prompt, answer)) =
        KNOWN.iter().find(|(name, _, _)| model == format!("tinyllama {name}")).copied()
    else {
        return Ok(nothing);
    };
    let mut passed = false;
    for row in rows.iter().filter(|row| row.engine == "llama.cpp" && row.n_threads == 2) {
        let known = match &*row.test {
            "pp512" => prompt,
            "tg64" => answer,
            _ => continue,
        };
        if (row.median_ts / known - 1.0).abs() > TOLERANCE {
            let (test, model) = (row.test.clone(), model.to_owned());
            return Err(Gated { test, model, found: row.median_ts, known });
        }
        passed = true;
    }
    Ok(if passed { Gate::Passed } else { nothing })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::table::tests::row;

    const ZEN3: &str = "AMD EPYC family 25 model 1";

    #[test]
    fn known_figures_must_be_reached_where_they_were_taken() {
        let rows = |pp, tg| [row("llama.cpp", "pp512", pp), row("llama.cpp", "tg64", tg)];
        assert_eq!(gate(ZEN3, "tinyllama q4_0", &rows(60.0, 31.0)), Ok(Gate::Passed));
        assert!(gate(ZEN3, "tinyllama q4_0", &rows(40.0, 31.0)).is_err());
        assert!(gate(ZEN3, "tinyllama q4_0", &rows(60.0, 40.0)).is_err());
    }

    #[test]
    fn elsewhere_nothing_is_known() {
        let rows = [row("llama.cpp", "pp512", 1.0)];
        let nothing = |cpu: &str| Ok(Gate::NothingKnown { cpu: cpu.to_owned() });
        let zen4 = "AMD EPYC family 25 model 17";
        assert_eq!(gate(zen4, "tinyllama q4_0", &rows), nothing(zen4));
        assert_eq!(gate(ZEN3, "7b q4_0", &rows), nothing(ZEN3));
        let other = [row("llama-core", "pp512", 1.0)];
        assert_eq!(gate(ZEN3, "tinyllama q4_0", &other), nothing(ZEN3));
    }
}
