//! Lets this package's own programs and tests find libtorch where it was linked. For others' programs, see the README.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Given by llama-backend-tch: set when the feature `tch` is on, and the folder is known.
    if let Ok(lib) = std::env::var("DEP_LLAMA_BACKEND_TCH_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
    }
}
