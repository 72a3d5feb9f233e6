//! Files as memory maps: the only unsafe code of the crate.
//!
//! A map costs address space and no memory until a page is read, and the system may drop its pages again: a model that is
//! read from a map is never held twice.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;

use super::CheckpointError;
use super::blob::Blob;

/// A file in memory, to be read.
#[derive(Debug)]
pub(super) struct Map(Mmap);

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Map {
    /// Lets go of the memory behind a range within the map, until it is read again.
    ///
    /// Nothing changes for readers. It is for elements that were copied elsewhere: without it, a process that joins shards would
    /// seem to hold the model twice until the system needs the memory.
    pub(super) fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        {
            // SAFETY:
            // - `DontNeed` is unsound where it discards what was written to memory; this map is read-only and a file stands
            //   behind each page, so that the next access reads the same bytes from it;
            // - the range lies within the map: memmap2 passes it on to the system, which refuses any other.
            let advised =
                unsafe { self.0.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
            // Advice that is not taken costs nothing but what it was meant to save.
            let _ = advised;
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

/// Maps a file into memory, to be read.
///
/// The file must not be changed or shortened while the map is in use: its tensors would change with it, and reading a page
/// that is gone ends the process (`SIGBUS` on Unix). Replacing the file by another under the same name is harmless.
pub(crate) fn map(path: &Path) -> Result<Blob, CheckpointError> {
    let failed = |source| CheckpointError::Io { path: path.to_owned(), source };
    // Asked before opening: to open a pipe would wait for its writer.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
    }
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.len() == 0 {
        // Not every system maps an empty file.
        return Ok(Blob::new(path, Arc::new([])));
    }
    // SAFETY:
    // - the map is read-only and private to this `Mmap`, which unmaps it when its last owner goes;
    // - no reference to its bytes outlives that owner: they are reached through `Arc<dyn AsRef<[u8]>>` alone;
    // - that nobody changes the file meanwhile cannot be checked here: it is the caller's part, documented at
    //   `checkpoint::open`. All offsets are checked against the map's length on every access, and every bit pattern is a
    //   valid `u8`, so changed content leads to other numbers or an error.
    let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
    Ok(Blob::mapped(path, Arc::new(Map(map))))
}
