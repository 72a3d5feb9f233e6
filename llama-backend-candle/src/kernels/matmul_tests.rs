//! The laws of products: near the naive one, and the same to the bit however they are computed.

use half::{bf16, f16};
use llama_backend::DType;
use llama_backend::quant::dequantize;

use super::dense::Rows;
use super::halves::Halves;
use super::matmul::{Product, Weights, matmul};
use super::quant::Packed;
use super::quant::activations::{Block, LEN};
use super::{Context, Isa};
use crate::test_util::{close, random};

/// Where a block has its f16s.
fn places(dtype: DType) -> &'static [usize] {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => &[],
        DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K => &[0, 2],
        DType::Q2_K => &[80, 82],
        DType::Q3_K => &[108],
        DType::Q6_K => &[208],
        _ => &[0],
    }
}

/// A matrix in some type, and what its elements are.
struct Matrix {
    dtype: DType,
    shape: [usize; 2],
    bytes: Vec<u8>,
    numbers: Vec<f32>,
}

impl Matrix {
    /// Any bits, but for scales, which are small numbers.
    fn random(dtype: DType, n_out: usize, k: usize, seed: u64) -> Self {
        let n = dtype.n_bytes(k).unwrap() * n_out;
        let noise = random(n, seed);
        let mut bytes: Vec<u8> = noise.iter().map(|x| (x.abs() * 65536.0) as u32 as u8).collect();
        let small = |i: usize| f16::from_f32(noise[i] * 0.01).to_le_bytes();
        match dtype {
            DType::F32 => {
                bytes = random(n / 4, seed).iter().flat_map(|x| x.to_le_bytes()).collect();
            }
            DType::F16 => {
                bytes = random(n / 2, seed).iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
            }
            DType::BF16 => {
                bytes = random(n / 2, seed).iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
            }
            _ => {
                for (i, block) in bytes.chunks_exact_mut(dtype.size()).enumerate() {
                    for &place in places(dtype) {
                        block[place..place + 2].copy_from_slice(&small(i));
                    }
                }
            }
        }
        let mut numbers = vec![0.0; n_out * k];
        dequantize(dtype, &bytes, &mut numbers).unwrap();
        Self { dtype, shape: [n_out, k], bytes, numbers }
    }

    /// As it is stored.
    fn stored(&self) -> Rows<'_> {
        match self.dtype {
            DType::F32 => Rows::F32(bytemuck::cast_slice(&self.bytes)),
            blocks => Rows::Blocks(blocks, &self.bytes),
        }
    }

    fn pack(&self, ctx: &Context) -> Packed {
        Packed::new(ctx, self.dtype, self.shape, &self.bytes, false).unwrap()
    }

    fn pack_fine(&self, ctx: &Context) -> Packed {
        Packed::new(ctx, self.dtype, self.shape, &self.bytes, true).unwrap()
    }

    fn halves(&self, ctx: &Context) -> Halves {
        Halves::new(ctx, self.dtype, self.shape, &self.bytes).unwrap()
    }

    /// `x · Wᵀ` in f64; with it, the sums of the magnitudes.
    fn naive(&self, x: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let k = self.shape[1];
        let products = |x: &[f32], w: &[f32]| -> Vec<f64> {
            x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).collect()
        };
        let each = x.chunks(k).flat_map(|x| self.numbers.chunks(k).map(move |w| products(x, w)));
        each.map(|p| (p.iter().sum::<f64>() as f32, p.iter().map(|p| p.abs()).sum::<f64>() as f32)).unzip()
    }
}

fn product(ctx: &Context, weights: Weights<'_>, [n_out, k]: [usize; 2], x: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.len() / k * n_out];
    matmul(ctx, x, k, vec![Product { weights, n_out, out: &mut out }]);
    out
}

/// Sizes below, at and above every tile, chunk and border: rows of activations, rows of weights, whole blocks of 256 (of 211 elements for
/// plain types).
const SIZES: &[[usize; 3]] = &[
    [1, 1, 1],
    [385, 9, 3],
    [1, 172, 1],
    [2, 5, 2],
    [3, 16, 3],
    [5, 17, 1],
    [6, 8, 2],
    [7, 33, 5],
    [65, 31, 3],
    [97, 50, 2],
    [3, 700, 2], // tasks of several sizes
];

#[test]
fn stored_weights_make_the_naive_product() {
    for isa in Isa::all() {
        let ctx = Context::new(isa, 2).unwrap();
        for &dtype in DType::ALL.iter().filter(|dtype| !Halves::are(**dtype)) {
            for &[n, n_out, blocks] in SIZES {
                // Plain types take any length.
                let k = if dtype.is_quantized() { 256 * blocks } else { 211 * blocks };
                let matrix = Matrix::random(dtype, n_out, k, 2);
                let x = random(n * k, 1);
                let found = product(&ctx, Weights::Dense(matrix.stored()), matrix.shape, &x);
                let (expected, magnitude) = matrix.naive(&x);
                for i in 0..found.len() {
                    let near = (found[i] - expected[i]).abs() <= 2e-6 * magnitude[i] + 1e-6;
                    assert!(near, "{isa:?} {dtype} {n} {n_out} {k}: {} for {}", found[i], expected[i]);
                }
            }
        }
    }
}

#[test]
fn packed_halves_make_the_naive_product() {
    for isa in Isa::all() {
        let ctx = Context::new(isa, 2).unwrap();
        for dtype in [DType::F16, DType::BF16] {
            for &[n, n_out, blocks] in SIZES {
                for k in [211 * blocks, 256 * blocks] {
                    let matrix = Matrix::random(dtype, n_out, k, 2);
                    let x = random(n * k, 1);
                    let found = product(&ctx, Weights::Halves(&matrix.halves(&ctx)), matrix.shape, &x);
                    let (expected, magnitude) = matrix.naive(&x);
                    for i in 0..found.len() {
                        let near = (found[i] - expected[i]).abs() <= 2e-6 * magnitude[i] + 1e-6;
                        assert!(near, "{isa:?} {dtype} {n} {n_out} {k}: {} for {}", found[i], expected[i]);
                    }
                }
            }
        }
    }
}

#[test]
fn packed_weights_make_the_naive_product_of_rounded_activations() {
    for isa in Isa::all() {
        let ctx = Context::new(isa, 2).unwrap();
        for &dtype in DType::ALL.iter().filter(|dtype| dtype.is_quantized()) {
            for &[n, n_out, blocks] in SIZES {
                let k = 256 * blocks;
                let matrix = Matrix::random(dtype, n_out, k, 4);
                let x = random(n * k, 3);
                let found = product(&ctx, Weights::Packed(&matrix.pack(&ctx)), matrix.shape, &x);
                let rounded: Vec<f32> = x.as_chunks::<LEN>().0.iter().flat_map(rounded).collect();
                let (expected, magnitude) = matrix.naive(&rounded);
                for i in 0..found.len() {
                    // Types with minima take large sums from each other.
                    let near = (found[i] - expected[i]).abs() <= 4e-6 * magnitude[i] + 1e-5;
                    assert!(near, "{isa:?} {dtype} {n} {n_out} {k}: {} for {}", found[i], expected[i]);
                }
            }
        }
    }
}

#[test]
fn fine_activations_make_the_naive_product_itself() {
    for isa in Isa::all() {
        let ctx = Context::new(isa, 2).unwrap();
        for &dtype in DType::ALL.iter().filter(|dtype| dtype.is_quantized()) {
            for &[n, n_out, blocks] in SIZES {
                let matrix = Matrix::random(dtype, n_out, 256 * blocks, 4);
                let x = random(n * 256 * blocks, 3);
                let found = product(&ctx, Weights::Packed(&matrix.pack_fine(&ctx)), matrix.shape, &x);
                let (expected, magnitude) = matrix.naive(&x);
                for i in 0..found.len() {
                    // 16 bits: half a step of 1 / 127².
                    let near = (found[i] - expected[i]).abs() <= 4e-5 * magnitude[i] + 1e-5;
                    assert!(near, "{isa:?} {dtype} {n} {n_out} {blocks}: {} for {}", found[i], expected[i]);
                }
            }
        }
    }
}

#[test]
fn the_largest_elements_do_not_overflow() {
    for &dtype in DType::ALL.iter().filter(|dtype| dtype.is_quantized()) {
        for sign in [1.0, -1.0] {
            let mut matrix = Matrix::random(dtype, 17, 512, 10);
            // Every element all ones, or all zeros: the largest that the type has, of either sign. The scales stay.
            for fill in [0xff, 0x80, 0x00] {
                let scales = matrix.bytes.clone();
                let len = dtype.size();
                for (block, was) in matrix.bytes.chunks_exact_mut(len).zip(scales.chunks_exact(len)) {
                    block.fill(fill);
                    for &place in places(dtype) {
                        block[place..place + 2].copy_from_slice(&was[place..place + 2]);
                    }
                }
                dequantize(dtype, &matrix.bytes, &mut matrix.numbers).unwrap();
                let x = vec![sign; 17 * 512];
                let (expected, magnitude) = matrix.naive(&x);
                for isa in Isa::all() {
                    let ctx = Context::new(isa, 1).unwrap();
                    let found = product(&ctx, Weights::Packed(&matrix.pack(&ctx)), matrix.shape, &x);
                    for i in 0..found.len() {
                        let near = (found[i] - expected[i]).abs() <= 4e-6 * magnitude[i] + 1e-5;
                        assert!(near, "{isa:?} {dtype} {fill:#x}: {} for {}", found[i], expected[i]);
                    }
                }
            }
        }
    }
}

/// What a block of activations stands for.
fn rounded(x: &[f32; LEN]) -> Vec<f32> {
    let block = Block::quantize(super::quant::Scalar { matrices: false }, x);
    block.q.as_flattened().iter().map(|q| f32::from(*q) * block.scale).collect()
}

/// Both ways of every type, each with its name.
fn each_way(isa: Isa, check: impl Fn(&str, Weights<'_>, [usize; 2])) {
    let ctx = Context::new(isa, 2).unwrap();
    for &dtype in DType::ALL {
        let matrix = Matrix::random(dtype, 75, 1792, 5); // the last chunk of a row has half the parts
        if Halves::are(dtype) {
            check(&format!("{isa:?} {dtype}"), Weights::Halves(&matrix.halves(&ctx)), matrix.shape);
        } else {
            check(&format!("{isa:?} {dtype}"), Weights::Dense(matrix.stored()), matrix.shape);
        }
        if dtype.is_quantized() {
            check(&format!("{isa:?} {dtype} packed"), Weights::Packed(&matrix.pack(&ctx)), matrix.shape);
            check(&format!("{isa:?} {dtype} fine"), Weights::Packed(&matrix.pack_fine(&ctx)), matrix.shape);
        }
    }
}

#[test]
fn a_row_is_the_same_to_the_bit_in_any_chunking_and_on_any_threads() {
    for isa in Isa::all() {
        let one = Context::new(isa, 1).unwrap();
        let two = Context::new(isa, 2).unwrap();
        each_way(isa, |what, weights, shape| {
            let [n_out, k] = shape;
            let x = random(101 * k, 6);
            let whole = product(&two, weights, shape, &x);
            for ctx in [&one, &two] {
                for n in [1, 2, 3, 4, 5, 6, 7, 8, 64, 101] {
                    // All chunks of many rows, and of few rows those that lie differently in a larger chunk's tiles.
                    for i in (0..101).step_by(n).filter(|i| n > 8 || i % 13 < 2) {
                        let rows = i..(i + n).min(101);
                        let part = product(ctx, weights, shape, &x[rows.start * k..rows.end * k]);
                        assert!(
                            part == whole[rows.start * n_out..rows.end * n_out],
                            "{what}: rows {rows:?} differ from themselves"
                        );
                    }
                }
            }
        });
    }
}

#[test]
fn matrices_together_make_what_they_make_alone() {
    for isa in Isa::all() {
        let ctx = Context::new(isa, 2).unwrap();
        let (first, second) =
            (Matrix::random(DType::Q6_K, 400, 512, 7), Matrix::random(DType::F16, 119, 512, 8));
        let (packed, halves) = (first.pack(&ctx), second.halves(&ctx));
        let x = random(9 * 512, 9);
        let (mut a, mut b) = (vec![0.0; 9 * 400], vec![0.0; 9 * 119]);
        let products = vec![
            Product { weights: Weights::Packed(&packed), n_out: 400, out: &mut a },
            Product { weights: Weights::Halves(&halves), n_out: 119, out: &mut b },
        ];
        matmul(&ctx, &x, 512, products);
        close(&a, &product(&ctx, Weights::Packed(&packed), first.shape, &x), 0.0, "first");
        close(&b, &product(&ctx, Weights::Halves(&halves), second.shape, &x), 0.0, "second");
    }
}

#[test]
fn what_is_not_finite_reaches_the_result() {
    for isa in Isa::all() {
        let ctx = Context::new(isa, 2).unwrap();
        each_way(isa, |what, weights, shape| {
            for n in [1, 17] {
                let mut x = vec![1.0; n * shape[1]];
                x.iter_mut().skip(700).step_by(shape[1]).for_each(|x| *x = f32::NAN);
                let out = product(&ctx, weights, shape, &x);
                assert!(out.iter().all(|out| out.is_nan()), "{what}, {n} rows");
            }
        });
    }
}
