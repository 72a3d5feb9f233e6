//! Golden files: what Meta's reference code did, case by case.
//!
//! They are no part of the repository. `LLAMA_GOLDEN_DIR` and `LLAMA_DATA_DIR` name their directory and that of the
//! checkpoints (default `../shared/golden` and `../shared/data`), seen from the workspace root wherever the tests run.
//! Without them a test says so and passes; with `LLAMA_REQUIRE_GOLDEN=1` it fails.
//!
//! ```ignore
//! let Some(golden) = Golden::load("tokenizer_llama2.json") else { return };
//! let Some(model) = golden.data("tokenizer") else { return };
//! golden.check("cases", |case| same("ids", &ids(&case["ids"]), &tokenizer.encode(text(&case["text"]))));
//! ```

#![allow(dead_code, reason = "every test binary compiles this module, and none uses all of it")]
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a golden file that is not what it says fails its test"
)]
#![allow(clippy::print_stdout, reason = "the count of cases is the result")]

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use llama_backend::TokenId;
use llama_core::{BackendKind, Device};
use serde_json::Value;

/// Absolute tolerance on logits and log-probabilities, against the reference in float32.
pub(crate) const TOLERANCE: f32 = 1e-3;

/// What a check of one case gives: nothing, or what is wrong.
pub(crate) type Check = Result<(), String>;

/// A golden file.
pub(crate) struct Golden {
    pub(crate) name: String,
    pub(crate) json: Value,
}

impl Golden {
    /// The file, or `None` where it is absent and may be.
    pub(crate) fn load(name: &str) -> Option<Golden> {
        let path = present(directory("LLAMA_GOLDEN_DIR", "../shared/golden").join(name))?;
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let json = serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Some(Golden { name: name.to_owned(), json })
    }

    /// The checkpoint file that the golden file names in this field.
    pub(crate) fn data(&self, field: &str) -> Option<PathBuf> {
        data(text(&self.json[field]))
    }

    /// Checks every case of a list, prints `file: N of N cases`, and fails unless all hold.
    pub(crate) fn check(&self, list: &str, check: impl FnMut(&Value) -> Check) {
        let note = if list == "cases" { "" } else { list };
        self.check_where(list, note, |_| true, check);
    }

    /// As [`check`](Self::check), naming the engine that answers.
    pub(crate) fn check_on(&self, engine: BackendKind, check: impl FnMut(&Value) -> Check) {
        self.check_where("cases", engine.name(), |_| true, check);
    }

    /// As [`check`](Self::check), for the cases that are meant; `note` says which, or by whom.
    pub(crate) fn check_where(
        &self,
        list: &str,
        note: &str,
        meant: impl Fn(&Value) -> bool,
        mut check: impl FnMut(&Value) -> Check,
    ) {
        let cases = self.json[list].as_array().unwrap_or_else(|| panic!("{}: no list {list}", self.name));
        let cases: Vec<_> = cases.iter().filter(|case| meant(case)).collect();
        assert!(!cases.is_empty(), "{}: no case in {list}", self.name);
        let mut passed = 0;
        for (i, case) in cases.iter().enumerate() {
            match check(case) {
                Ok(()) => passed += 1,
                Err(wrong) => println!("{} {list}[{i}]: {wrong}", self.name),
            }
        }
        let what = if note.is_empty() { String::new() } else { format!(" ({note})") };
        println!("{}: {passed} of {} cases{what}", self.name, cases.len());
        assert_eq!(passed, cases.len(), "{} {list}", self.name);
    }
}

/// The engines that are compiled in: what is golden is golden on each.
pub(crate) fn engines() -> Vec<BackendKind> {
    let compiled_in = |kind: &BackendKind| match kind.open(Device::Cpu) {
        Ok(_) => true,
        Err(error) if error.is_missing_feature() => false,
        Err(error) => panic!("{kind}: {error}"),
    };
    BackendKind::ALL.iter().copied().filter(compiled_in).collect()
}

/// A file or directory of the checkpoints, or `None` where it is absent and may be.
pub(crate) fn data(path: &str) -> Option<PathBuf> {
    present(directory("LLAMA_DATA_DIR", "../shared/data").join(path))
}

/// `Ok` if the two are equal, else both, shortened to where they part.
pub(crate) fn same<T: PartialEq + Debug + ?Sized>(what: &str, expected: &T, found: &T) -> Check {
    if expected == found {
        return Ok(());
    }
    Err(format!("{what}: expected {expected:?}, found {found:?}"))
}

/// `Ok` if the two lists of logits or log-probabilities agree within [`TOLERANCE`], else the first that do not.
pub(crate) fn close(what: &str, expected: &[f32], found: &[f32]) -> Check {
    same(&format!("length of {what}"), &expected.len(), &found.len())?;
    for (i, (expected, found)) in expected.iter().zip(found).enumerate() {
        let distance = (expected - found).abs();
        if distance.is_nan() || distance > TOLERANCE {
            return Err(format!("{what}[{i}]: expected {expected}, found {found}"));
        }
    }
    Ok(())
}

/// A list of token ids.
pub(crate) fn ids(json: &Value) -> Vec<TokenId> {
    let list = json.as_array().unwrap_or_else(|| panic!("no list of ids: {json}"));
    list.iter().map(|id| TokenId(id.as_u64().and_then(|id| u32::try_from(id).ok()).expect("an id"))).collect()
}

/// A string.
pub(crate) fn text(json: &Value) -> &str {
    json.as_str().unwrap_or_else(|| panic!("no string: {json}"))
}

/// A float32, which the files write as the shortest decimal that reads back to it.
pub(crate) fn float(json: &Value) -> f32 {
    json.as_f64().unwrap_or_else(|| panic!("no number: {json}")) as f32
}

fn directory(variable: &str, default: &str) -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    workspace.join(std::env::var_os(variable).unwrap_or_else(|| default.into()))
}

fn present(path: PathBuf) -> Option<PathBuf> {
    if path.exists() {
        return Some(path);
    }
    let required = std::env::var_os("LLAMA_REQUIRE_GOLDEN").is_some_and(|value| value == "1");
    assert!(!required, "{} is absent, and LLAMA_REQUIRE_GOLDEN=1", path.display());
    println!("skipped: {} is absent", path.display());
    None
}
