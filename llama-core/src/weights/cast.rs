//! [`Cast`]: a checkpoint's tensors in other types, converted when they are asked for.
//!
//! One wrapper for three wishes: matrices in the type that the caller asks for, matrices quantised, and whatever an engine does not
//! take in f32. All go by way of f32 and the scalar conversions of [`llama_backend::quant`], so that a file in Q4_K gives the same
//! numbers to every engine. What is converted is in memory in its new type; the file stays mapped, its pages the system's to drop, and
//! tensors that keep their type are still its own bytes.

use std::ops::{DerefMut, Range};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use llama_backend::quant::{QuantError, dequantize, quantize};
use llama_backend::{DType, ModelConfig, TensorInfo, WeightBytes, WeightError, WeightSource};

/// What matrices are quantised to while they are loaded, by the rule of ggml's reference.
///
/// Rows that are no whole blocks of 256 elements are `Q8_0` in a model of `Q4_K`; rows that are no whole blocks of 32 stay as they
/// are stored, as norms do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(non_camel_case_types, reason = "ggml's names, by which users know these types")]
pub enum Quantization {
    /// 8.5 bits an element.
    Q8_0,
    /// 4.5 bits an element.
    Q4_0,
    /// 4.5 bits an element, nearer to the original than `Q4_0`, and slower to make.
    Q4_K,
}

impl Quantization {
    /// The type of the blocks.
    #[must_use]
    pub fn dtype(self) -> DType {
        match self {
            Self::Q8_0 => DType::Q8_0,
            Self::Q4_0 => DType::Q4_0,
            Self::Q4_K => DType::Q4_K,
        }
    }
}

/// Which tensors are converted, and to what.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rule {
    /// Matrices to this type; norms stay as they are: they are small, and their precision counts.
    Matrices(DType),
    /// Matrices to these blocks.
    Quantize(Quantization),
    /// What is of none of these types to f32.
    Fit(&'static [DType]),
}

impl Rule {
    /// The type that a tensor is to have.
    fn target(self, info: &TensorInfo) -> DType {
        let is_matrix = info.shape.len() > 1;
        match self {
            Self::Matrices(dtype) if is_matrix => dtype,
            Self::Quantize(quantization) if is_matrix => {
                let blocks = [quantization.dtype(), DType::Q8_0];
                let row = info.shape.last().copied().unwrap_or(0);
                let fit = blocks.into_iter().find(|dtype| row.is_multiple_of(dtype.block_len()));
                fit.unwrap_or(info.dtype)
            }
            Self::Fit(taken) if !taken.contains(&info.dtype) => DType::F32,
            _ => info.dtype,
        }
    }
}

/// The tensors of a checkpoint in other types.
#[derive(Debug)]
pub(crate) struct Cast {
    inner: Arc<dyn WeightSource>,
    rule: Rule,
    threads: usize,
    /// The embedding's blocks and what became of them, until the output asks for the same.
    embedding: Mutex<Option<[WeightBytes; 2]>>,
}

/// A tensor's way from one type to another.
struct Way<'a> {
    name: &'a str,
    from: DType,
    to: DType,
}

impl Cast {
    /// The tensors by this rule; where it changes none, the source itself. Large tensors are converted on `threads` threads.
    pub(crate) fn wrap(inner: Arc<dyn WeightSource>, rule: Rule, threads: usize) -> Arc<dyn WeightSource> {
        let changes = |name: &str| inner.info(name).is_ok_and(|info| rule.target(&info) != info.dtype);
        if !inner.config().tensors().any(|(name, _)| changes(&name)) {
            return inner;
        }
        Arc::new(Self { inner, rule, threads, embedding: Mutex::new(None) })
    }

    fn embedding(&self) -> impl DerefMut<Target = Option<[WeightBytes; 2]>> + '_ {
        // Nothing is ever half done to it.
        self.embedding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How a tensor is stored, and its way to what it is to be; `None` where that is the same.
    fn way<'a>(&self, name: &'a str) -> Result<(TensorInfo, Option<Way<'a>>), WeightError> {
        let info = self.inner.info(name)?;
        let (from, to) = (info.dtype, self.rule.target(&info));
        Ok((info, (from != to).then_some(Way { name, from, to })))
    }
}

impl Way<'_> {
    /// Converts whole blocks of both types.
    fn convert(&self, stored: &[u8], out: &mut [u8], threads: usize) -> Result<(), WeightError> {
        /// Elements that are converted at a time: whole blocks of every type.
        const CHUNK: usize = 4096;
        let size = |dtype: DType| CHUNK / dtype.block_len() * dtype.size();
        let (from, to) = (size(self.from), size(self.to));
        let run = |stored: &[u8], out: &mut [u8]| {
            let mut chunk = [0.0; CHUNK];
            for (stored, out) in stored.chunks(from).zip(out.chunks_mut(to)) {
                let chunk = &mut chunk[..out.len() / self.to.size() * self.to.block_len()];
                dequantize(self.from, stored, chunk)?;
                quantize(self.to, chunk, out)?;
            }
            Ok::<_, QuantError>(())
        };
        let chunks = stored.len().div_ceil(from);
        let each = chunks.div_ceil(threads.max(1)).max(1);
        let done = if chunks < 16 {
            run(stored, out)
        } else {
            std::thread::scope(|scope| {
                let parts = stored.chunks(each * from).zip(out.chunks_mut(each * to));
                let parts: Vec<_> =
                    parts.map(|(stored, out)| scope.spawn(move || run(stored, out))).collect();
                // A thread that panicked passes its panic on.
                let join = |part: std::thread::ScopedJoinHandle<'_, _>| {
                    part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                };
                parts.into_iter().map(join).fold(Ok(()), Result::and)
            })
        };
        done.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: QuantError) -> WeightError {
        WeightError::Read {
            file: PathBuf::from("checkpoint"),
            tensor: self.name.to_owned(),
            source: source.into(),
        }
    }

    fn misfit(&self, what: String) -> WeightError {
        WeightError::Slice { tensor: self.name.to_owned(), what }
    }
}

impl WeightSource for Cast {
    fn config(&self) -> &ModelConfig {
        self.inner.config()
    }

    fn info(&self, name: &str) -> Result<TensorInfo, WeightError> {
        let info = self.inner.info(name)?;
        Ok(TensorInfo { dtype: self.rule.target(&info), ..info })
    }

    fn bytes(&self, name: &str) -> Result<WeightBytes, WeightError> {
        let (_, way) = self.way(name)?;
        let stored = self.inner.bytes(name)?;
        let Some(way) = way else { return Ok(stored) };
        if name == "output.weight"
            && let Some([blocks, converted]) = self.embedding().take()
            && (blocks.as_ptr(), blocks.len()) == (stored.as_ptr(), stored.len())
        {
            return Ok(converted);
        }
        // As many elements as are stored, which is what memory or an address space holds.
        let n_elements = stored.len() / way.from.size() * way.from.block_len();
        let n_bytes = way.to.n_bytes(n_elements);
        let n_bytes = n_bytes.ok_or_else(|| way.misfit(format!("no whole blocks of {}", way.to)))?;
        let mut out = vec![0; n_bytes];
        way.convert(&stored, &mut out, self.threads)?;
        let out = WeightBytes::from(out);
        // A tied model is in memory once. Blocks come from a file that is mapped, so that keeping them costs nothing.
        if name == "tok_embeddings.weight" && way.from.is_quantized() {
            *self.embedding() = Some([stored, out.clone()]);
        }
        Ok(out)
    }

    fn read_slice(
        &self,
        name: &str,
        dim: usize,
        range: Range<usize>,
        out: &mut [u8],
    ) -> Result<(), WeightError> {
        let (TensorInfo { shape, .. }, Some(way)) = self.way(name)? else {
            return self.inner.read_slice(name, dim, range, out);
        };
        let is_last = dim + 1 == shape.len();
        let blocks = if is_last { way.to.block_len() } else { 1 };
        let lies_within = shape.get(dim).is_some_and(|&len| range.start <= range.end && range.end <= len);
        if !lies_within || !range.start.is_multiple_of(blocks) || !range.end.is_multiple_of(blocks) {
            let what =
                format!("no range {range:?} in dimension {dim} of shape {shape:?}, in blocks of {blocks}");
            return Err(way.misfit(what));
        }
        let (outer, inner): (usize, usize) =
            (shape[..dim].iter().product(), shape[dim + 1..].iter().product());
        let part = way.to.n_bytes(range.len() * inner);
        let part = part.filter(|part| out.len() == outer * part).ok_or_else(|| {
            way.misfit(format!("a buffer of {} bytes for {outer} × {range:?} × {inner}", out.len()))
        })?;
        // The stored blocks that the range lies in, which may be wider than it.
        let stored_blocks = if is_last { way.from.block_len() } else { 1 };
        let wide = range.start / stored_blocks * stored_blocks..range.end.next_multiple_of(stored_blocks);
        let n_wide = wide.len() * inner;
        let stored_part = way.from.n_bytes(n_wide);
        let stored_part =
            stored_part.ok_or_else(|| way.misfit(format!("no whole blocks of {}", way.from)))?;
        let mut stored = vec![0; outer * stored_part];
        self.inner.read_slice(name, dim, wide.clone(), &mut stored)?;
        if wide == range || part == 0 {
            return way.convert(&stored, out, self.threads);
        }
        let mut row = vec![0.0; n_wide];
        let wanted = range.start - wide.start..range.end - wide.start; // `inner` is 1 here: the dimension is the last
        for (stored, out) in stored.chunks_exact(stored_part).zip(out.chunks_exact_mut(part)) {
            dequantize(way.from, stored, &mut row).map_err(|source| way.failed(source))?;
            quantize(way.to, &row[wanted.clone()], out).map_err(|source| way.failed(source))?;
        }
        Ok(())
    }

    fn shares(&self, name: &str) -> bool {
        matches!(self.way(name), Ok((_, None))) && self.inner.shares(name)
    }

    fn release(&self, name: &str) {
        self.inner.release(name);
    }
}
