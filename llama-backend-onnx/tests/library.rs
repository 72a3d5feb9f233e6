//! Without ONNX Runtime, or with something else in its place: an error that says what to do, and no second harm.
//!
//! A test binary of its own, and one test: a process loads one library.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;
use std::process::Command;

use llama_backend::{Backend, BackendError, Device};
use llama_backend_onnx::OnnxBackend;

/// The error says which library, what to install and which variable to set.
#[track_caller]
fn refused(result: Result<OnnxBackend, BackendError>, library: &Path) -> String {
    let error = result.unwrap_err();
    assert!(matches!(error, BackendError::Library { backend: "onnx", .. }), "{error:?}");
    let text = error.to_string();
    for part in
        [library.to_str().unwrap(), "setup-onnxruntime.sh", "pip install onnxruntime", "ORT_DYLIB_PATH"]
    {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    text
}

#[test]
fn a_library_that_will_not_do_is_an_error_and_not_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let absent = dir.path().join("libonnxruntime.so");
    refused(OnnxBackend::with_library(&absent), &absent);

    let text = dir.path().join("text.so");
    std::fs::write(&text, "no library").unwrap();
    refused(OnnxBackend::with_library(&text), &text);

    // Libraries that load, and are none of ONNX Runtime's, or an old one. The C compiler is the one that links Rust.
    let compiled = |name: &str, source: &str| {
        let (c, library) = (dir.path().join(name).with_extension("c"), dir.path().join(name));
        std::fs::write(&c, source).unwrap();
        let mut compiler = Command::new("cc");
        assert!(compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&c).status().unwrap().success());
        library
    };
    if cfg!(target_os = "linux") {
        let other = compiled("other.so", "int answer(void) { return 42; }");
        refused(OnnxBackend::with_library(&other), &other);
        let old = compiled(
            "old.so",
            "static const void *api(unsigned version) { return 0; }
             static const char *name(void) { return \"1.17.3\"; }
             static const void *base[2] = { (void *)api, (void *)name };
             const void *OrtGetApiBase(void) { return base; }",
        );
        let text = refused(OnnxBackend::with_library(&old), &old);
        assert!(text.contains("1.17.3"), "{text}");
    }

    // None of that is remembered: the right one loads, and serves everybody from then on.
    let backend = OnnxBackend::new(Device::Cpu).unwrap();
    assert_eq!(backend.name(), "onnx");
    let loaded = std::env::var_os("ORT_DYLIB_PATH").unwrap();
    OnnxBackend::with_library(&loaded).unwrap();
    let error = OnnxBackend::with_library(&absent).unwrap_err();
    assert!(error.to_string().contains("is loaded already"), "{error}");
}

#[test]
fn devices_that_it_does_not_compute_on_are_unsupported() {
    for device in [Device::Cuda(0), Device::Metal(0)] {
        let error = OnnxBackend::new(device).unwrap_err();
        assert!(matches!(error, BackendError::Unsupported { backend: "onnx", .. }), "{error:?}");
    }
}
