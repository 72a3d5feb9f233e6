//! llama.cpp's own quantiser, so that both engines read a file that is llama.cpp's in every byte.

use std::ffi::CString;
use std::path::Path;

use crate::Error;

/// Writes `from` as `file_type`.
pub fn run(from: &Path, to: &Path, file_type: &str) -> Result<(), Error> {
    let ftype = match file_type {
        "f32" => llama_cpp_sys_2::LLAMA_FTYPE_ALL_F32,
        "f16" => llama_cpp_sys_2::LLAMA_FTYPE_MOSTLY_F16,
        "q8_0" => llama_cpp_sys_2::LLAMA_FTYPE_MOSTLY_Q8_0,
        "q4_0" => llama_cpp_sys_2::LLAMA_FTYPE_MOSTLY_Q4_0,
        "q4_K_S" => llama_cpp_sys_2::LLAMA_FTYPE_MOSTLY_Q4_K_S,
        "q4_K_M" => llama_cpp_sys_2::LLAMA_FTYPE_MOSTLY_Q4_K_M,
        other => {
            let expected = "f32, f16, q8_0, q4_0, q4_K_S or q4_K_M";
            return Err(format!("unknown type {other:?}, expected {expected}").into());
        }
    };
    let name = |path: &Path| Ok::<_, Error>(CString::new(path.to_string_lossy().as_bytes())?);
    let (from, to) = (name(from)?, name(to)?);
    // SAFETY: the function takes nothing and returns a plain structure.
    let mut params = unsafe { llama_cpp_sys_2::llama_model_quantize_default_params() };
    params.ftype = ftype;
    params.allow_requantize = true;
    // SAFETY: both names end with a zero and, like the parameters, outlive the call; the parameters' pointers are null, as they came.
    match unsafe { llama_cpp_sys_2::llama_model_quantize(from.as_ptr(), to.as_ptr(), &params) } {
        0 => Ok(()),
        code => Err(format!("llama.cpp could not quantise {from:?}: it says {code}").into()),
    }
}
