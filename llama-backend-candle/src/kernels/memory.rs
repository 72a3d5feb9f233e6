//! Memory of packed weights, in large pages where the system has them.
//!
//! A stream of large pages is read faster than one of small ones, but a page is large only where a mapping covers all of it: of matrices
//! that are mapped each for itself, two fifths lie in small ones. So matrices are cut from mappings of many pages, one after the other.

use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::MmapMut;

use super::simd::LINE;

/// A large page, of x86 and mostly of ARM.
const PAGE: usize = 2 << 20;
/// A mapping, unless a matrix is larger. What no matrix takes of it is never touched, and so is no memory.
const MAPPING: usize = 64 << 20;

/// Where a model's matrices are packed.
#[derive(Debug, Default)]
pub(crate) struct Memory(Mutex<Option<Mapping>>);

/// What the next matrix is cut from.
#[derive(Debug)]
struct Mapping {
    mapped: Arc<Mapped>,
    /// What is not taken yet: within what is mapped, from a line's start on.
    rest: Range<usize>,
}

/// A mapping, which nobody reads or writes but through its regions.
#[derive(Debug)]
struct Mapped {
    start: NonNull<u8>,
    _mapped: MmapMut,
}

// SAFETY: the address of memory that any thread may read, write and give back; see `Region` for who does.
#[allow(unsafe_code)]
unsafe impl Send for Mapped {}
// SAFETY: as above; a shared `Mapped` gives nothing but its address.
#[allow(unsafe_code)]
unsafe impl Sync for Mapped {}

/// Bytes of a mapping that are their owner's alone, from a line's start on.
#[derive(Debug)]
pub(crate) struct Region {
    mapped: Arc<Mapped>,
    range: Range<usize>,
}

impl Memory {
    /// So many bytes of zeros.
    pub(crate) fn take(&self, n_bytes: usize) -> io::Result<Region> {
        let lines = n_bytes.checked_next_multiple_of(LINE).ok_or(io::ErrorKind::OutOfMemory)?;
        // It is replaced as a whole: a panic elsewhere cannot have broken it.
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mapping = match current.take() {
            Some(mapping) if mapping.rest.len() >= lines => mapping,
            _ => Mapping::new(lines)?,
        };
        let from = mapping.rest.start;
        let region = Region { mapped: Arc::clone(&mapping.mapped), range: from..from + n_bytes };
        *current = Some(Mapping { rest: from + lines..mapping.rest.end, ..mapping });
        Ok(region)
    }
}

impl Mapping {
    /// Of at least so many bytes, from a large page's start on.
    fn new(n_bytes: usize) -> io::Result<Self> {
        let len = n_bytes.max(MAPPING).checked_add(PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut mapped = MmapMut::map_anon(len)?;
        #[cfg(target_os = "linux")]
        let _ = mapped.advise(memmap2::Advice::HugePage); // a kernel without them is as good, but slower
        let from = mapped.as_ptr().align_offset(PAGE);
        let start = NonNull::from(&mut *mapped).cast();
        Ok(Self { mapped: Arc::new(Mapped { start, _mapped: mapped }), rest: from..len })
    }
}

impl Deref for Region {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `Memory::take` cut `range` from what was left of the mapping: it lies within, and in no other region. The mapping is
        // alive as long as this region has it, its bytes are zeros or what was written to them, and who writes has the region by `&mut`.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(self.mapped.start.add(self.range.start).as_ptr(), self.range.len())
        }
    }
}

impl DerefMut for Region {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; the region is borrowed mutably, and nothing else leads to these bytes.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts_mut(self.mapped.start.add(self.range.start).as_ptr(), self.range.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_zeros_of_their_own_that_outlive_the_memory_they_came_from() {
        let memory = Memory::default();
        // None; less than a line; a line; many pages; with the rest, more than a mapping; more than any.
        let lens = [0, 1, LINE, LINE + 1, 3 * PAGE + 5, MAPPING - PAGE, MAPPING, MAPPING + LINE + 1];
        let mut regions = Vec::new();
        for (i, len) in lens.into_iter().enumerate() {
            let mut region = memory.take(len).unwrap();
            assert_eq!(region.len(), len);
            assert!(region.as_ptr().addr().is_multiple_of(LINE));
            assert!(region.iter().all(|&byte| byte == 0));
            region.fill(i as u8);
            regions.push(region);
        }
        drop(memory);
        for (i, region) in regions.iter().enumerate() {
            assert!(region.iter().all(|&byte| byte == i as u8));
        }
        let memory = Memory::default();
        assert!(memory.take(usize::MAX).is_err());
        assert!(memory.take(usize::MAX - PAGE).is_err());
        assert!(memory.take(1).is_ok());
    }
}
