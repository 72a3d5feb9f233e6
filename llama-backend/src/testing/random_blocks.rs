//! Random blocks of the types that nothing is quantised to: any bits, with the scales that make weights of the wanted size.

use half::f16;

use super::random::mix;
use crate::DType;
use crate::quant::dequantize;

/// Where a block has its scale, and its minimum where it has one.
fn halves(dtype: DType) -> (usize, Option<usize>) {
    match dtype {
        DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K => (0, Some(2)),
        DType::Q2_K => (80, Some(82)),
        DType::Q3_K => (108, None),
        DType::Q6_K => (208, None),
        _ => (0, None),
    }
}

fn set(block: &mut [u8], at: usize, value: f32) {
    block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// Fills a block of a quantised type with what a hash of `key` and `index` gives: weights around 0, of this standard deviation.
pub(super) fn random_block(dtype: DType, key: u64, index: usize, deviation: f32, block: &mut [u8]) {
    for (i, bytes) in block.chunks_mut(8).enumerate() {
        let bits = mix(key.wrapping_add((index * 64 + i) as u64)).to_le_bytes();
        bytes.copy_from_slice(&bits[..bytes.len()]);
    }
    let (scale, minimum) = halves(dtype);
    let mut x = [0.0; 256];
    let x = &mut x[..dtype.block_len()];
    let mut read = |block: &[u8]| {
        // One whole block: nothing is left to fail.
        let done = dequantize(dtype, block, x);
        debug_assert!(done.is_ok(), "{done:?}");
        let n = x.len() as f32;
        let mean = x.iter().sum::<f32>() / n;
        (mean, (x.iter().map(|x| x * x).sum::<f32>() / n - mean * mean).max(0.0).sqrt())
    };
    // The mean that the numbers have, and the one that a minimum of 1 makes of it.
    set(block, scale, 1.0);
    let mut m = 0.0;
    if let Some(at) = minimum {
        set(block, at, 0.0);
        let without = read(block).0;
        set(block, at, 1.0);
        m = without / (without - read(block).0);
        set(block, at, m);
    }
    let d = deviation / read(block).1.max(f32::MIN_POSITIVE);
    set(block, scale, d);
    if let Some(at) = minimum {
        set(block, at, m * d);
    }
}
