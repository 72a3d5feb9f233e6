//! Quantised blocks against ggml's own: read to the bit, and made to the bit.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod golden;

use golden::{Check, Golden, same, text};
use llama_backend::DType;
use llama_backend::quant::{QuantError, dequantize, quantize};
use serde_json::Value;

fn dtype(case: &Value) -> DType {
    let name = text(&case["type"]);
    *DType::ALL.iter().find(|dtype| dtype.to_string() == name).unwrap_or_else(|| panic!("no type {name}"))
}

fn blocks(case: &Value) -> Vec<u8> {
    let digits = text(&case["hex"]).as_bytes().chunks_exact(2);
    digits.map(|byte| u8::from_str_radix(std::str::from_utf8(byte).unwrap(), 16).unwrap()).collect()
}

fn floats(json: &Value) -> Vec<f32> {
    json.as_array().unwrap().iter().map(golden::float).collect()
}

/// The first element whose bits differ.
fn same_bits(expected: &[f32], found: &[f32]) -> Check {
    same("length", &expected.len(), &found.len())?;
    for (i, (expected, found)) in expected.iter().zip(found).enumerate() {
        // Decimals do not tell -0 from 0.
        if expected != found {
            return Err(format!("[{i}]: expected {expected}, found {found}"));
        }
    }
    Ok(())
}

#[test]
fn every_type_is_read_as_ggml_reads_it() {
    let Some(golden) = Golden::load("gguf_dequant.json") else { return };
    golden.check("cases", |case| {
        let (dtype, blocks) = (dtype(case), blocks(case));
        same("block size", &case["block_size"].as_u64(), &Some(dtype.block_len() as u64))?;
        same("bytes of a block", &case["block_bytes"].as_u64(), &Some(dtype.size() as u64))?;
        let expected = floats(&case["values"]);
        same("bytes", &dtype.n_bytes(expected.len()), &Some(blocks.len()))?;
        let mut found = vec![0.0; expected.len()];
        dequantize(dtype, &blocks, &mut found).map_err(|error| error.to_string())?;
        same_bits(&expected, &found).map_err(|wrong| format!("{dtype}{wrong}"))
    });
    let all: Vec<_> = golden.json["cases"].as_array().unwrap().iter().map(dtype).collect();
    assert!(DType::ALL.iter().all(|dtype| all.contains(dtype)), "every type is golden");
}

#[test]
fn the_types_that_are_made_are_made_as_ggml_makes_them() {
    let Some(golden) = Golden::load("gguf_dequant.json") else { return };
    let source = floats(&golden.json["source"]);
    let made =
        |case: &Value| !matches!(quantize(dtype(case), &[], &mut []), Err(QuantError::ReadOnly { .. }));
    golden.check_where("cases", "quantised here", made, |case| {
        let (dtype, expected) = (dtype(case), blocks(case));
        let mut found = vec![0; expected.len()];
        quantize(dtype, &source, &mut found).map_err(|error| error.to_string())?;
        let differs = expected.iter().zip(&found).position(|(expected, found)| expected != found);
        same(&format!("{dtype}: the first byte that differs"), &None, &differs)
    });
}
