//! llama.cpp's own quantiser, so that both engines read a file that is llama.cpp's in every byte.

use std::ffi::CString;
use std::path::Path;

use crate::Error;

const TYPES: [(&str, llama_cpp_sys_2::llama_ftype); 13] = [
    ("f32", llama_cpp_sys_2::LLAMA_FTYPE_ALL_F32),
    ("f16", llama_cpp_sys_2::LLAMA_FTYPE_MOSTLY_F16),
    ("q4_0", llama_cpp_sys_2::LLAMA_FTYPE_MOSTLY_Q4_0),
    ("q4_1", llama_cpp_sys_2::LLAMA_FTYPE_MOSTLY_Q4_1),
    ("q5_0", llama_cpp_sys_2::LLAMA_FTYPE_MOSTLY_Q5_0),
    ("q5_1", llama_cpp_sys_2::LLAMA_FTYPE_MOSTLY_Q5_1),
    ("q8_0", llama_cpp_sys_2::LLAMA_FTYPE_MOSTLY_Q8_0),
    ("q2_K", llama_cpp_sys_2::LLAMA_FTYPE_MOSTLY_Q2_K),
    ("q3_K_M", llama_cpp_sys_2::LLAMA_FTYPE_MOSTLY_Q3_K_M),
    ("q4_K_S", llama_cpp_sys_2::LLAMA_FTYPE_MOSTLY_Q4_K_S),
    ("q4_K_M", llama_cpp_sys_2::LLAMA_FTYPE_MOSTLY_Q4_K_M),
    ("q5_K_M", llama_cpp_sys_2::LLAMA_FTYPE_MOSTLY_Q5_K_M),
    ("q6_K", llama_cpp_sys_2::LLAMA_FTYPE_MOSTLY_Q6_K),
];

/// Writes `from` as `file_type`.
pub fn run(from: &Path, to: &Path, file_type: &str) -> Result<(), Error> {
    let Some(&(_, ftype)) = TYPES.iter().find(|(name, _)| *name == file_type) else {
        let expected = TYPES.map(|(name, _)| name).join(", ");
        return Err(format!("unknown type {file_type:?}, expected one of {expected}").into());
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
