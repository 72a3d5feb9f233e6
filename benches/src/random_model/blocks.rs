//! Random elements of any type, blocks included.
//!
//! A block's bits are random, but for its scale `d` and, where it has one, its minimum `m`. Those are chosen so that elements have
//! mean 0 and a standard deviation near 0.02: by what the same bits give with a scale of 1, which is measured and not
//! written down for each type.

use std::io::{self, Write};

use half::{bf16, f16};
use llama_backend::DType;
use llama_backend::quant::dequantize;
use llama_backend::testing::Rng;

/// The standard deviation of elements.
pub(super) const STD: f32 = 0.02;
/// Blocks that are made at a time, and measured at first.
const CHUNK: usize = 4096;

/// Makes elements of one type.
pub(super) struct Blocks {
    dtype: DType,
    scale: f32,
}

impl Blocks {
    pub(super) fn new(dtype: DType) -> Self {
        let mut blocks = Self { dtype, scale: 1.0 };
        let mut bytes = vec![0; CHUNK * dtype.size()];
        let mut elements = vec![0.0; CHUNK * dtype.block_len()];
        blocks.fill(&mut Rng::new(0), &mut bytes);
        // Both are `CHUNK` blocks.
        if dequantize(dtype, &bytes, &mut elements).is_ok() {
            let squares = elements.iter().map(|x| x * x).sum::<f32>();
            blocks.scale = STD / (squares / elements.len() as f32).sqrt();
        }
        blocks
    }

    /// Writes so many bytes, of whole blocks.
    pub(super) fn write(&self, rng: &mut Rng, mut n_bytes: usize, out: &mut dyn Write) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK * self.dtype.size()];
        while n_bytes > 0 {
            let n = n_bytes.min(chunk.len());
            self.fill(rng, &mut chunk[..n]);
            out.write_all(&chunk[..n])?;
            n_bytes -= n;
        }
        Ok(())
    }

    fn fill(&self, rng: &mut Rng, bytes: &mut [u8]) {
        match self.dtype {
            DType::F32 => self.each(rng, bytes, f32::to_le_bytes),
            DType::F16 => self.each(rng, bytes, |x| f16::from_f32(x).to_le_bytes()),
            DType::BF16 => self.each(rng, bytes, |x| bf16::from_f32(x).to_le_bytes()),
            dtype => self.each_block(rng, bytes, dtype),
        }
    }

    /// Elements that are stored one by one: uniform.
    fn each<const N: usize>(&self, rng: &mut Rng, bytes: &mut [u8], store: impl Fn(f32) -> [u8; N]) {
        for pair in bytes.chunks_mut(2 * N) {
            let bits = rng.next_u64();
            let halves = [bits as u32, (bits >> 32) as u32];
            for (bytes, bits) in pair.chunks_mut(N).zip(halves) {
                let x = bits as i32 as f32 / 2_f32.powi(31); // -1..=1
                bytes.copy_from_slice(&store(x * self.scale));
            }
        }
    }

    fn each_block(&self, rng: &mut Rng, bytes: &mut [u8], dtype: DType) {
        let fields = Fields::of(dtype);
        for block in bytes.chunks_mut(dtype.size()) {
            for bytes in block.chunks_mut(8) {
                bytes.copy_from_slice(&rng.next_u64().to_le_bytes()[..bytes.len()]);
            }
            if dtype == DType::Q8_0 {
                // Quantisers make -127..=127.
                block[2..].iter_mut().for_each(|q| *q = if *q == 0x80 { 0x81 } else { *q });
            }
            let bits = rng.next_u64();
            let d = self.scale * (0.75 + (bits % 1024) as f32 / 2048.0);
            let sign = if fields.m.is_none() && bits >> 63 == 1 { -1.0 } else { 1.0 };
            put(block, fields.d, d * sign);
            if let Some((m, ratio)) = fields.m {
                put(block, m, d * ratio);
            }
        }
    }
}

/// Where a block has its scale, and its minimum as a multiple of the scale: such that the mean is 0.
struct Fields {
    d: usize,
    m: Option<(usize, f32)>,
}

impl Fields {
    fn of(dtype: DType) -> Self {
        let (d, m) = match dtype {
            // d · q + m
            DType::Q4_1 => (0, Some((2, -7.5))),
            DType::Q5_1 => (0, Some((2, -15.5))),
            // d · scale · q - m · minimum, scale and minimum alike
            DType::Q2_K => (80, Some((82, 1.5))),
            DType::Q4_K => (0, Some((2, 7.5))),
            DType::Q5_K => (0, Some((2, 15.5))),
            DType::Q3_K => (108, None),
            DType::Q6_K => (208, None),
            _ => (0, None),
        };
        Self { d, m }
    }
}

fn put(block: &mut [u8], at: usize, x: f32) {
    block[at..at + 2].copy_from_slice(&f16::from_f32(x).to_le_bytes());
}
