//! ONNX Runtime's shared library: found, loaded once for the process, and asked to keep quiet.
//!
//! The library is loaded when a backend is opened and never before, so that a program that is built with this crate starts on
//! a machine without it. A process has one ONNX Runtime: the first that loads serves all. A failure is not remembered: who
//! installs the library, or names the right one, may try again.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use llama_backend::BackendError;
use ort::environment::Environment;
use ort::logging::LogLevel;

use crate::{NAME, engine};

/// The variable that names the library. It is the engine's own: `ort` and its documentation use it, so whoever has an ONNX
/// Runtime of his own has set it already.
const VARIABLE: &str = "ORT_DYLIB_PATH";

const REMEDY: &str = "install ONNX Runtime 1.24 or later, by scripts/setup-onnxruntime.sh or `pip install onnxruntime`, and set \
                      ORT_DYLIB_PATH to its libonnxruntime";

/// The one that was loaded, and from where.
static LOADED: Mutex<Option<(PathBuf, Environment)>> = Mutex::new(None);

/// The environment of the library at `path`; else of the one that `ORT_DYLIB_PATH` names; else of the one that the system's
/// loader finds by its usual name.
pub(crate) fn environment(path: Option<&Path>) -> Result<Environment, BackendError> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner); // written whole, or not at all
    if let Some((from, environment)) = &*loaded {
        return match path {
            Some(path) if path != from => Err(BackendError::Library {
                backend: NAME,
                library: path.to_owned(),
                remedy: "a process has one ONNX Runtime: name the same library everywhere",
                source: format!("{} is loaded already", from.display()).into(),
            }),
            _ => Ok(environment.clone()),
        };
    }
    let path = path.map_or_else(usual, Path::to_owned);
    let builder = ort::init_from(&path).map_err(|error| BackendError::Library {
        backend: NAME,
        library: path.clone(),
        remedy: REMEDY,
        source: error.to_string().into(), // ort's own type is no part of the seam
    })?;
    // What goes wrong comes back as an error. The engine would print it too; and a library does not print.
    let silence = Arc::new(|_: LogLevel, _: &str, _: &str, _: &str, _: &str| {});
    let environment =
        builder.with_name(NAME).with_telemetry(false).with_logger(silence).build().map_err(engine)?;
    environment.set_log_level(LogLevel::Fatal);
    *loaded = Some((path, environment.clone()));
    Ok(environment)
}

/// Where the library is when nobody says.
fn usual() -> PathBuf {
    match std::env::var_os(VARIABLE) {
        Some(path) if !path.is_empty() => path.into(),
        _ => format!("{}onnxruntime{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX).into(),
    }
}
