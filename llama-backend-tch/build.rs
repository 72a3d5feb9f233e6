//! Finds libtorch before torch-sys looks for it, to say what is missing in fewer words than a C++ compiler.

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    for name in ["LIBTORCH", "LIBTORCH_LIB", "LIBTORCH_USE_PYTORCH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    // torch-sys asks Python itself where its libtorch lies. Programs then find it by LD_LIBRARY_PATH.
    if env::var_os("CARGO_FEATURE_DOC_ONLY").is_some() || env::var_os("LIBTORCH_USE_PYTORCH").is_some() {
        return;
    }
    let root = env::var_os("LIBTORCH").map(PathBuf::from);
    let Some(lib) = env::var_os("LIBTORCH_LIB").map(PathBuf::from).or_else(|| root.clone()) else {
        if !Path::new("/usr/lib/libtorch.so").exists() {
            missing("the variable LIBTORCH is not set");
        }
        return;
    };
    let lib = lib.join("lib");
    println!("cargo::rerun-if-changed={}", lib.display());
    if !lib.is_dir() {
        missing(&format!("there is no folder {} (LIBTORCH is its parent)", lib.display()));
        return;
    }
    // Our own tests find the library by this; dependents pass it on to theirs.
    println!("cargo::metadata=libtorch_lib={}", lib.display());
    println!("cargo::rustc-link-arg=-Wl,-rpath,{}", lib.display());
}

fn missing(what: &str) {
    println!(
        "cargo::error=libtorch 2.13.0 was not found: {what}. Run scripts/setup-libtorch.sh of this crate's repository, \
         or set LIBTORCH to the folder of a libtorch of your own"
    );
}
