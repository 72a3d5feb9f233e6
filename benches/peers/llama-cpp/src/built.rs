//! How llama.cpp was built: what it says itself, held against what the processor has.

use std::ffi::CStr;

use crate::Error;

/// What llama.cpp says, `NAME = 1` for what it uses.
pub fn system_info() -> String {
    // SAFETY: the function takes nothing and returns text that ends with a zero and lives as long as the program.
    let info = unsafe { CStr::from_ptr(llama_cpp_sys_2::llama_print_system_info()) };
    info.to_string_lossy().trim().to_owned()
}

/// The crates that brought it.
pub fn versions() -> String {
    let version = |package: &str| {
        let mut lines = include_str!("../Cargo.lock").lines();
        lines.find(|line| *line == format!("name = \"{package}\""));
        let version = lines.next().and_then(|line| line.split('"').nth(1)).unwrap_or("?");
        format!("{package} {version}")
    };
    ["llama-cpp-2", "llama-cpp-sys-2"].map(version).join("; ")
}

/// Refuses a build that is not llama.cpp's best on this processor.
pub fn check() -> Result<(), Error> {
    let info = system_info();
    let uses = |name: &str| info.split([':', '|']).any(|part| part.trim() == format!("{name} = 1"));
    let mut wanted = vec!["OPENMP", "REPACK", "LLAMAFILE"];
    #[cfg(target_arch = "x86_64")]
    {
        wanted.extend(["AVX2", "FMA", "F16C"]);
        let wider = [
            ("AVX512", is_x86_feature_detected!("avx512f")),
            ("AVX512_VBMI", is_x86_feature_detected!("avx512vbmi")),
            ("AVX512_VNNI", is_x86_feature_detected!("avx512vnni")),
            ("AVX512_BF16", is_x86_feature_detected!("avx512bf16")),
            ("AVX_VNNI", is_x86_feature_detected!("avxvnni")),
            // No macro tells it: the seventh leaf's `edx` does.
            ("AMX_INT8", std::arch::x86_64::__cpuid_count(7, 0).edx >> 25 & 1 == 1),
        ];
        wanted.extend(wider.into_iter().filter(|(_, has)| *has).map(|(name, _)| name));
    }
    let missing: Vec<_> = wanted.into_iter().filter(|name| !uses(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join(", ");
    Err(format!(
        "llama.cpp was built without {missing}: nothing is compared. Build it with RUSTFLAGS=-Ctarget-cpu=native. It says: {info}"
    )
    .into())
}
