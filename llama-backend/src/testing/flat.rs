//! [`FlatWeights`]: a checkpoint whose tensors lie one after the other, for tests of where memory goes.

use std::collections::HashMap;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;

use crate::{DType, ModelConfig, TensorInfo, WeightBytes, WeightError, WeightSource};

/// A model of one type, norms included, in one piece of memory: a vector, or a memory map of what [`write_to`](Self::write_to) wrote.
#[derive(Debug, Clone)]
pub struct FlatWeights {
    config: ModelConfig,
    dtype: DType,
    tensors: HashMap<String, (Vec<usize>, WeightBytes)>,
}

impl FlatWeights {
    /// Writes a model of this shape, whose rows are whole blocks: small numbers over and over, in bf16, as the halves of f32 or as what
    /// makes blocks. What they are does not matter, only that they are no zeros and finite.
    ///
    /// # Errors
    ///
    /// What `out` says.
    pub fn write_to(config: &ModelConfig, dtype: DType, out: &mut impl Write) -> io::Result<()> {
        let pattern: Vec<u8> = (0..1u32 << 15)
            .flat_map(|i| (0x3c00 | (i.wrapping_mul(0x9e37_79b9) >> 16) as u16 & 0x80ff).to_le_bytes())
            .collect();
        for (i, (_, range)) in ranges(config, dtype).into_iter().enumerate() {
            // Each from elsewhere: an engine may keep equal tensors once.
            let mut from = 2 * i % pattern.len();
            let mut left = range.len();
            while left > 0 {
                let part = left.min(pattern.len() - from);
                out.write_all(&pattern[from..from + part])?;
                (from, left) = (0, left - part);
            }
        }
        Ok(())
    }

    /// The model that was written to `memory`; `None` where that is too short.
    #[must_use]
    pub fn new(
        config: ModelConfig,
        dtype: DType,
        memory: Arc<dyn AsRef<[u8]> + Send + Sync>,
    ) -> Option<Self> {
        let tensor =
            |((name, shape), range)| Some((name, (shape, WeightBytes::new(Arc::clone(&memory), range)?)));
        let ranges = ranges(&config, dtype).into_iter().map(|(_, range)| range);
        let tensors = config.tensors().zip(ranges).map(tensor).collect::<Option<_>>()?;
        Some(Self { config, dtype, tensors })
    }

    fn tensor(&self, name: &str) -> Result<&(Vec<usize>, WeightBytes), WeightError> {
        let missing = || WeightError::Missing { file: "flat weights".into(), tensor: name.to_owned() };
        self.tensors.get(name).ok_or_else(missing)
    }
}

/// Where each tensor lies.
fn ranges(config: &ModelConfig, dtype: DType) -> Vec<(String, Range<usize>)> {
    let mut end = 0;
    let range = |(name, shape): (String, Vec<usize>)| {
        let start = end;
        end += shape.iter().product::<usize>() / dtype.block_len() * dtype.size();
        (name, start..end)
    };
    config.tensors().map(range).collect()
}

impl WeightSource for FlatWeights {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn info(&self, name: &str) -> Result<TensorInfo, WeightError> {
        Ok(TensorInfo { dtype: self.dtype, shape: self.tensor(name)?.0.clone() })
    }

    fn bytes(&self, name: &str) -> Result<WeightBytes, WeightError> {
        Ok(self.tensor(name)?.1.clone())
    }

    fn shares(&self, name: &str) -> bool {
        self.tensor(name).is_ok()
    }

    /// None: tests of memory read whole tensors.
    fn read_slice(&self, name: &str, _: usize, _: Range<usize>, _: &mut [u8]) -> Result<(), WeightError> {
        Err(WeightError::Slice { tensor: name.to_owned(), what: "flat weights have no slices".to_owned() })
    }
}
