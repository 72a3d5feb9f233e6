//! One `.pth` file: its tensors, and where in the file their elements lie.
//!
//! Both containers of `torch.save` are read. The zip archive (since 2020) keeps each storage as an entry; the legacy format
//! is a row of pickles followed by the storages, each after its length.

use std::collections::HashMap;
use std::ops::Range;

use llama_backend::DType;

use super::archive::Archive;
use super::blob::Blob;
use super::pickle::{Pickle, PickledTensor, Storage, Value};
use super::view::{FileTensors, PLAIN, Stored};
use super::{ArchiveError, CheckpointError, PickleError};

/// `torch.serialization.MAGIC_NUMBER`, with which a legacy file begins.
const LEGACY_MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
const LEGACY_PROTOCOL: i128 = 1001;

/// Reads the directory of a `.pth` file; no element is touched.
pub(super) fn read(blob: Blob) -> Result<FileTensors, CheckpointError> {
    let file = blob.bytes();
    let tensors = if Archive::sniff(file) {
        read_zip(&blob)?
    } else if matches!(
        Pickle::read(&file[..file.len().min(32)]),
        Ok(Pickle { value: Value::Int(LEGACY_MAGIC), .. })
    ) {
        read_legacy(&blob)?
    } else {
        let start = &file[..file.len().min(40)];
        let start = String::from_utf8_lossy(start).into_owned();
        return Err(archive_error(&blob, ArchiveError::NotPyTorch { start }));
    };
    Ok(FileTensors { blob, tensors, supported: PLAIN })
}

fn read_zip(blob: &Blob) -> Result<HashMap<String, Stored>, CheckpointError> {
    let file = blob.bytes();
    let failed = |source| archive_error(blob, source);
    let archive = Archive::read(file).map_err(failed)?;
    // Files from before 2023 do not say; they were written on little-endian machines.
    if let Ok(order) = archive.entry("byteorder")
        && &file[order.clone()] != b"little"
    {
        let found = String::from_utf8_lossy(&file[order.start..order.end.min(order.start + 16)]).into_owned();
        return Err(failed(ArchiveError::ByteOrder { found }));
    }
    // `entry` gives ranges within the file.
    let pickle = &file[archive.entry("data.pkl").map_err(failed)?];
    let pickle = Pickle::read(pickle).map_err(|source| pickle_error(blob, source))?;
    tensors(blob, &pickle, |storage| archive.entry(&format!("data/{}", storage.key)).map_err(failed))
}

fn read_legacy(blob: &Blob) -> Result<HashMap<String, Stored>, CheckpointError> {
    let file = blob.bytes();
    let failed = |source| pickle_error(blob, source);
    let content = |found: &str, expected| PickleError::Content { found: found.to_owned(), expected };
    let mut at = 0;
    let mut next = || {
        // A pickle ends within what it was given.
        let pickle = Pickle::read(&file[at..])?;
        at += pickle.len;
        Ok(pickle)
    };
    next().map_err(failed)?; // the magic number, by which the file was recognised
    if next().map_err(failed)?.value != Value::Int(LEGACY_PROTOCOL) {
        return Err(failed(content("another protocol of torch.save", "protocol 1001")));
    }
    if next().map_err(failed)?.get("little_endian") != Some(Value::Bool(true)) {
        let found = "big".to_owned();
        return Err(archive_error(blob, ArchiveError::ByteOrder { found }));
    }
    let pickle = next().map_err(failed)?;
    let keys = next().map_err(failed)?;
    let keys = keys.strings().ok_or_else(|| failed(content("something else", "the list of storages")))?;

    // The storages follow in the order of their keys, and only the tensors know how large their elements are.
    let sizes: HashMap<&str, usize> = pickle
        .tensors()
        .map_err(failed)?
        .into_iter()
        .map(|(_, tensor)| (tensor.storage.key, element_size(tensor.storage.class)))
        .collect();
    let mut places: HashMap<&str, Range<usize>> = HashMap::new();
    for key in keys {
        let place = sizes.get(key).and_then(|&size| {
            let n_elements = u64::from_le_bytes(*file.get(at..)?.first_chunk()?);
            let start = at.checked_add(8)?;
            let len = usize::try_from(n_elements).ok()?.checked_mul(size)?;
            let end = start.checked_add(len).filter(|&end| end <= file.len())?;
            Some(start..end)
        });
        let place = place.ok_or_else(|| archive_error(blob, ArchiveError::Truncated { len: file.len() }))?;
        at = place.end;
        places.insert(key, place);
    }
    tensors(blob, &pickle, |storage| {
        places.get(storage.key).cloned().ok_or_else(|| {
            let entry = format!("storage {}", storage.key);
            archive_error(blob, ArchiveError::NoEntry { entry })
        })
    })
}

/// The pickle's tensors, once each is known to lie within its storage.
fn tensors(
    blob: &Blob,
    pickle: &Pickle<'_>,
    place: impl Fn(&Storage<'_>) -> Result<Range<usize>, CheckpointError>,
) -> Result<HashMap<String, Stored>, CheckpointError> {
    let mut tensors = HashMap::new();
    for (name, tensor) in pickle.tensors().map_err(|source| pickle_error(blob, source))? {
        let wrong =
            |what: String| CheckpointError::Layout { file: blob.path(), tensor: name.to_owned(), what };
        let place = place(&tensor.storage)?;
        let Storage { class, n_elements, .. } = tensor.storage;
        let size = element_size(class);
        if n_elements.checked_mul(size) != Some(place.len()) {
            return Err(wrong(format!(
                "its storage holds {} bytes, expected {n_elements} elements of {size} ({class})",
                place.len()
            )));
        }
        if !lies_within(tensor, n_elements) {
            return Err(wrong(format!(
                "shape {:?} with strides {:?} at {} does not lie within its storage of {n_elements} elements",
                tensor.shape, tensor.strides, tensor.offset
            )));
        }
        let stored = Stored {
            dtype: dtype(class),
            type_name: class.to_owned(),
            shape: tensor.shape.clone(),
            strides: tensor.strides.clone(),
            start: place.start + tensor.offset * size, // the offset lies within the storage
        };
        if tensors.insert(name.to_owned(), stored).is_some() {
            return Err(wrong("it is there twice".to_owned()));
        }
    }
    Ok(tensors)
}

/// Whether a view lies within its storage and has no more elements than it: strides of zero could make a few bytes look
/// like any number of elements.
fn lies_within(tensor: &PickledTensor<'_>, n_elements: usize) -> bool {
    let count = tensor.shape.iter().try_fold(1_usize, |count, &dim| count.checked_mul(dim));
    let last = tensor.shape.iter().zip(&tensor.strides).try_fold(tensor.offset, |last, (&dim, &stride)| {
        last.checked_add(dim.checked_sub(1)?.checked_mul(stride)?)
    });
    tensor.shape.len() == tensor.strides.len()
        && count.is_some_and(|count| count <= n_elements)
        && last.is_some_and(|last| last < n_elements)
}

fn dtype(class: &str) -> Option<DType> {
    match class {
        "FloatStorage" => Some(DType::F32),
        "HalfStorage" => Some(DType::F16),
        "BFloat16Storage" => Some(DType::BF16),
        _ => None,
    }
}

/// The bytes of an element of a storage class that the pickle reader knows.
fn element_size(class: &str) -> usize {
    match class {
        "DoubleStorage" | "LongStorage" => 8,
        "FloatStorage" | "IntStorage" => 4,
        "HalfStorage" | "BFloat16Storage" | "ShortStorage" => 2,
        _ => 1,
    }
}

fn archive_error(blob: &Blob, source: ArchiveError) -> CheckpointError {
    CheckpointError::Archive { file: blob.path(), source }
}

fn pickle_error(blob: &Blob, source: PickleError) -> CheckpointError {
    CheckpointError::Pickle { file: blob.path(), source }
}
