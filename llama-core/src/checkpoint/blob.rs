//! [`Blob`]: the bytes of a file, be they mapped or embedded in the program, with the name that errors give it.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use llama_backend::WeightBytes;

use super::mmap::Map;

/// Shared bytes and their name. Cloning shares both.
#[derive(Clone)]
pub(crate) struct Blob {
    path: Arc<Path>,
    data: Arc<dyn AsRef<[u8]> + Send + Sync>,
    /// The same bytes, where they are a mapped file.
    map: Option<Arc<Map>>,
}

impl Blob {
    pub(super) fn new(path: &Path, data: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Self {
        Self { path: path.into(), data, map: None }
    }

    pub(super) fn mapped(path: &Path, map: Arc<Map>) -> Self {
        Self { path: path.into(), data: map.clone(), map: Some(map) }
    }

    /// Says that a range was copied and is not needed in memory for now.
    pub(super) fn release(&self, range: Range<usize>) {
        /// Below that, asking costs more than it saves.
        const WORTHWHILE: usize = 1 << 20;
        if let Some(map) = &self.map
            && range.len() >= WORTHWHILE
            && range.end <= self.bytes().len()
        {
            map.release(range);
        }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.path.to_path_buf()
    }

    /// The file's name without its folder.
    pub(super) fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or(self.path.as_os_str());
        name.to_string_lossy().into_owned()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        (*self.data).as_ref()
    }

    /// A part of the bytes that keeps all of them alive.
    pub(super) fn share(&self, range: Range<usize>) -> Option<WeightBytes> {
        WeightBytes::new(Arc::clone(&self.data), range)
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({})", self.path.display())
    }
}
