//! The zip archive of a `.pth` file: where each entry's bytes lie.
//!
//! `torch.save` stores its entries without compression so that they can be mapped, and only that is accepted: nothing is
//! ever inflated, so no entry is larger than the file. The directory is read in place, by hand: a general zip library
//! reserves memory for as many entries as the file claims to have and copies what it reads. Checksums are not compared, as
//! that would read the whole model.

use std::collections::HashMap;
use std::ops::Range;

/// Why a `.pth` file's zip archive cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// The file is neither a zip archive nor a legacy `torch.save` file.
    #[error("not a PyTorch checkpoint: it starts with {start:?}")]
    NotPyTorch {
        /// Its first bytes, as text.
        start: String,
    },
    /// The end of the archive is missing: most often the file was cut off in a download.
    #[error("no end of the zip archive was found: the file is truncated or damaged ({len} bytes)")]
    Truncated {
        /// The file's length.
        len: usize,
    },
    /// The archive's directory contradicts itself or the file.
    #[error("damaged zip archive: {what}")]
    Damaged {
        /// What does not fit.
        what: String,
    },
    /// An entry that is compressed or encrypted. `torch.save` never writes those.
    #[error("entry {entry:?} is {how}; expected it stored as it is")]
    NotStored {
        /// The entry.
        entry: String,
        /// `"compressed (method 8)"` or `"encrypted"`.
        how: String,
    },
    /// An entry that a checkpoint must have.
    #[error("no entry {entry:?} in the zip archive")]
    NoEntry {
        /// The entry.
        entry: String,
    },
    /// A checkpoint that was written on a big-endian machine.
    #[error("byte order {found:?}, expected \"little\"")]
    ByteOrder {
        /// The content of the entry `byteorder`.
        found: String,
    },
}

/// The entries of an archive: their names, and the range of the file that each occupies.
#[derive(Debug)]
pub(super) struct Archive {
    entries: HashMap<String, Range<usize>>,
    /// The folder that all entries lie in, with its slash: `consolidated.00/`, `archive/`.
    prefix: String,
}

const LOCAL_HEADER: &[u8] = b"PK\x03\x04";
const CENTRAL_HEADER: &[u8] = b"PK\x01\x02";
const END: &[u8] = b"PK\x05\x06";
const END64: &[u8] = b"PK\x06\x06";
const END64_LOCATOR: &[u8] = b"PK\x06\x07";
const END_LEN: usize = 22;
const END64_LOCATOR_LEN: usize = 20;

/// Far above the entries of any checkpoint: Llama 2 70B has fewer than a thousand a file.
const MAX_ENTRIES: u64 = 1 << 20;
/// Values that stand for "see the zip64 field".
const IN_ZIP64: u64 = 0xffff_ffff;
const COUNT_IN_ZIP64: u64 = 0xffff;

impl Archive {
    /// Whether the file starts as a zip archive does.
    pub(super) fn sniff(file: &[u8]) -> bool {
        file.starts_with(LOCAL_HEADER)
    }

    /// Reads the directory and checks every entry against the file.
    pub(super) fn read(file: &[u8]) -> Result<Self, ArchiveError> {
        let (count, directory) = find_directory(file)?;
        let mut rest = file.get(directory).ok_or_else(|| damaged("its directory lies outside the file"))?;
        let mut entries = HashMap::new();
        for _ in 0..count {
            let (name, range, header_len) = read_entry(file, rest)?;
            rest = &rest[header_len..]; // `read_entry` read that many bytes of it
            if entries.insert(name.clone(), range).is_some() {
                return Err(damaged(format!("two entries are named {name:?}")));
            }
        }
        check_overlap(&entries)?;

        let mut pickles = entries.keys().filter_map(|name| name.strip_suffix("data.pkl"));
        let prefix = match (pickles.next(), pickles.next()) {
            (Some(prefix), None) => prefix.to_owned(),
            (Some(_), Some(_)) => return Err(damaged("it has more than one data.pkl")),
            (None, _) => {
                return Err(ArchiveError::NoEntry { entry: "data.pkl".to_owned() });
            }
        };
        Ok(Self { entries, prefix })
    }

    /// Where the entry `name`, without the archive's folder, lies in the file.
    pub(super) fn entry(&self, name: &str) -> Result<Range<usize>, ArchiveError> {
        let entry = format!("{}{name}", self.prefix);
        match self.entries.get(&entry) {
            Some(range) => Ok(range.clone()),
            None => Err(ArchiveError::NoEntry { entry }),
        }
    }
}

/// The number of entries and the range of the directory, from the records at the end of the file.
fn find_directory(file: &[u8]) -> Result<(u64, Range<usize>), ArchiveError> {
    let truncated = || ArchiveError::Truncated { len: file.len() };
    // The last record ends with a comment of at most 64 KiB, which must reach to the end of the file.
    let last = file.len().checked_sub(END_LEN).ok_or_else(truncated)?;
    let end = (last.saturating_sub(0xffff)..=last)
        .rev()
        .find(|&at| {
            file[at] == END[0]
                && file[at..].starts_with(END)
                && u16_at(file, at + 20) == Some((last - at) as u64)
        })
        .ok_or_else(truncated)?;
    let field = |value: Option<u64>| value.ok_or_else(truncated);
    let mut count = field(u16_at(file, end + 10))?;
    let mut size = field(u32_at(file, end + 12))?;
    let mut start = field(u32_at(file, end + 16))?;

    let locator = end.checked_sub(END64_LOCATOR_LEN);
    if let Some(locator) = locator.filter(|&at| file[at..].starts_with(END64_LOCATOR)) {
        let end64 = field(u64_at(file, locator + 8))?;
        let end64 = usize::try_from(end64)
            .ok()
            .filter(|&at| at < locator && file[at..].starts_with(END64))
            .ok_or_else(|| damaged("its zip64 record is not where it should be"))?;
        if count == COUNT_IN_ZIP64 {
            count = field(u64_at(file, end64 + 32))?;
        }
        if size == IN_ZIP64 {
            size = field(u64_at(file, end64 + 40))?;
        }
        if start == IN_ZIP64 {
            start = field(u64_at(file, end64 + 48))?;
        }
    }
    if count > MAX_ENTRIES {
        return Err(damaged(format!("it says that it has {count} entries")));
    }
    let directory = range(start, size, end).ok_or_else(|| damaged("its directory lies outside the file"))?;
    Ok((count, directory))
}

/// Reads the directory's first entry: its name, its range in the file, and the length of its record.
fn read_entry(file: &[u8], directory: &[u8]) -> Result<(String, Range<usize>, usize), ArchiveError> {
    let short = || damaged("its directory has fewer entries than it says");
    if !directory.starts_with(CENTRAL_HEADER) {
        return Err(short());
    }
    let field = |value: Option<u64>| value.ok_or_else(short);
    let flags = field(u16_at(directory, 8))?;
    let method = field(u16_at(directory, 10))?;
    let mut stored = field(u32_at(directory, 20))?;
    let mut size = field(u32_at(directory, 24))?;
    let name_len = field(u16_at(directory, 28))? as usize;
    let extra_len = field(u16_at(directory, 30))? as usize;
    let comment_len = field(u16_at(directory, 32))? as usize;
    let mut header = field(u32_at(directory, 42))?;
    let name_bytes = directory.get(46..46 + name_len).ok_or_else(short)?;
    let extra = directory.get(46 + name_len..46 + name_len + extra_len).ok_or_else(short)?;
    let header_len = 46 + name_len + extra_len + comment_len;
    if directory.len() < header_len {
        return Err(short());
    }
    let name = String::from_utf8_lossy(name_bytes).into_owned();

    // The zip64 field holds, in this order, only those values that do not fit their 32 bits.
    let mut wide = zip64_field(extra);
    for value in [&mut size, &mut stored, &mut header] {
        if *value == IN_ZIP64 {
            *value =
                u64_at(wide, 0).ok_or_else(|| damaged(format!("entry {name:?} lacks its zip64 sizes")))?;
            wide = &wide[8..]; // eight bytes were just read
        }
    }
    if flags & 1 != 0 {
        let how = "encrypted".to_owned();
        return Err(ArchiveError::NotStored { entry: name, how });
    }
    if method != 0 {
        let how = format!("compressed (method {method})");
        return Err(ArchiveError::NotStored { entry: name, how });
    }
    let lost = || damaged(format!("entry {name:?} ({size} bytes) does not lie within the file"));
    if stored != size {
        return Err(damaged(format!("entry {name:?} holds {stored} bytes and says {size}")));
    }
    let local = range(header, 30, file.len()).ok_or_else(lost)?.start;
    let local_name_len = u16_at(file, local + 26).ok_or_else(lost)?;
    let local_extra_len = u16_at(file, local + 28).ok_or_else(lost)?;
    if !file[local..].starts_with(LOCAL_HEADER) || !file[local + 30..].starts_with(name_bytes) {
        return Err(lost());
    }
    let data =
        range(local as u64 + 30 + local_name_len + local_extra_len, size, file.len()).ok_or_else(lost)?;
    Ok((name, data, header_len))
}

/// The content of the zip64 field among an entry's extra fields; empty where there is none.
fn zip64_field(mut extra: &[u8]) -> &[u8] {
    while let (Some(id), Some(len)) = (u16_at(extra, 0), u16_at(extra, 2)) {
        let Some(content) = extra.get(4..4 + len as usize) else {
            break;
        };
        if id == 1 {
            return content;
        }
        extra = &extra[4 + content.len()..];
    }
    &[]
}

fn check_overlap(entries: &HashMap<String, Range<usize>>) -> Result<(), ArchiveError> {
    let mut ranges: Vec<_> = entries.iter().filter(|(_, range)| !range.is_empty()).collect();
    ranges.sort_by_key(|(_, range)| range.start);
    for pair in ranges.windows(2) {
        let [(a, first), (b, second)] = pair else { continue };
        if first.end > second.start {
            return Err(damaged(format!("entries {a:?} and {b:?} overlap")));
        }
    }
    Ok(())
}

/// `start..start + len`, where that lies within `limit` bytes.
fn range(start: u64, len: u64, limit: usize) -> Option<Range<usize>> {
    let start = usize::try_from(start).ok()?;
    let end = start.checked_add(usize::try_from(len).ok()?)?;
    (end <= limit).then_some(start..end)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?).into())
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?).into())
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn damaged(what: impl Into<String>) -> ArchiveError {
    ArchiveError::Damaged { what: what.into() }
}
