//! The edge to ONNX Runtime's C API: the calls that `ort` has no safe form for, and all of this crate's `unsafe`.
//!
//! Two things need it. Weights are *borrowed* by a session: `ort`'s own way copies them into memory of the engine's. And the
//! KV cache is bound to the engine's inputs and outputs by pointer: `ort` would clone it at every step.
//!
//! A pointer that the engine holds must stay good for as long as it may be used. [`Lent`] says for how long that is.
#![allow(unsafe_code, reason = "calls across the C API")]

use std::ffi::{CStr, c_void};
use std::ptr::NonNull;

use ort::editor::{self, Graph};
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, Session};
use ort::sys::{ONNXTensorElementDataType as Sys, OrtValue};
use ort::value::TensorElementType;
use ort::{AsPointer, Error, Result};

/// A type of numbers that the engine reads where they lie.
pub(crate) trait Element: Copy {
    const TYPE: TensorElementType;
}

macro_rules! elements {
    ($($rust:ty => $onnx:ident,)*) => {
        $(impl Element for $rust { const TYPE: TensorElementType = TensorElementType::$onnx; })*
    };
}
elements! {
    f32 => Float32,
    i32 => Int32,
    i64 => Int64,
}

/// Memory of this process, as the engine names it.
fn host() -> Result<MemoryInfo<'static>> {
    MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)
}

/// A value of the engine's over memory that is lent to it.
struct Lent(NonNull<OrtValue>);

impl Lent {
    /// # Safety
    ///
    /// - `data` points to `shape`'s product of elements of `ty`, which stay where they are and are freed only after this value
    ///   and everything that it was given to (a binding, a graph, a session) are gone or have let go of it.
    /// - While the engine runs with the value, nobody else writes the elements, nor reads them where it is an output.
    unsafe fn new(data: *mut c_void, n_bytes: usize, shape: &[i64], ty: TensorElementType) -> Result<Self> {
        let host = host()?;
        let mut value = std::ptr::null_mut();
        // SAFETY: the API is loaded, since a session or graph exists; `host`, `shape` and `value` live through the call, which
        // copies the shape; what `data` must be is this function's own condition.
        let status = unsafe {
            (ort::api().CreateTensorWithDataAsOrtValue)(
                host.ptr(),
                data,
                n_bytes,
                shape.as_ptr(),
                shape.len(),
                Sys::from(ty),
                &mut value,
            )
        };
        // SAFETY: the status is the call's, and is used once.
        unsafe { Error::result_from_status(status) }?;
        let value = NonNull::new(value).ok_or_else(|| Error::new("the engine made no tensor"))?;
        Ok(Self(value))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // SAFETY: the value was made by this API, is owned by `self`, and is released once. Others that were given it count
        // their own references.
        unsafe { (ort::api().ReleaseValue)(self.0.as_ptr()) }
    }
}

/// Adds an initializer to a graph without copying it.
///
/// # Safety
///
/// `bytes` stay where they are, unchanged, until the graph, its model and every session made of them are gone.
pub(crate) unsafe fn lend_initializer(
    graph: &mut Graph,
    name: &CStr,
    shape: &[i64],
    ty: TensorElementType,
    bytes: &[u8],
) -> Result<()> {
    let size = ty.byte_size(1).unwrap_or(0);
    if size == 0 || !bytes.len().is_multiple_of(size) || bytes.as_ptr().align_offset(size) != 0 {
        return Err(Error::new(format!("{} bytes that cannot be read as {ty}", bytes.len())));
    }
    check_len(shape, bytes.len() / size)?;
    // SAFETY: there are as many elements as the shape has, aligned, and any bits are a number; they outlive the graph and are not
    // written by this function's condition, and an initializer is only read.
    let value = unsafe { Lent::new(bytes.as_ptr().cast_mut().cast(), bytes.len(), shape, ty) }?;
    let api = editor::editor_api()?;
    // SAFETY: the graph is alive, and the name ends in NUL. The call takes the value over where it succeeds.
    let status =
        unsafe { (api.AddInitializerToGraph)(graph.ptr().cast_mut(), name.as_ptr(), value.0.as_ptr(), true) };
    // SAFETY: the status is the call's, and is used once.
    unsafe { Error::result_from_status(status) }?;
    std::mem::forget(value); // the graph's now
    Ok(())
}

/// A session with the tensors that are bound to its inputs and outputs.
#[derive(Debug)]
pub(crate) struct Bound {
    // Before the session, so that it goes first.
    binding: IoBinding,
    session: Session,
    /// How many times the engine ran.
    pub(crate) n_runs: u64,
}

impl Bound {
    pub(crate) fn new(session: Session) -> Result<Self> {
        Ok(Self { binding: session.create_binding()?, session, n_runs: 0 })
    }

    /// One run of the engine. `bind` binds every input and output to memory; nothing stays bound when this returns.
    ///
    /// # Errors
    ///
    /// What the engine says. Outputs may then be written in part.
    pub(crate) fn run<'a>(&mut self, bind: impl FnOnce(&mut Binder<'_, 'a>) -> Result<()>) -> Result<()> {
        let mut binder = Binder { binding: &mut self.binding, lent: std::marker::PhantomData };
        let bound = bind(&mut binder);
        let result = bound.and_then(|()| {
            self.n_runs += 1;
            // SAFETY: session and binding are alive, belong together and are used by this thread alone (`&mut self`). What is
            // bound lives for `'a`, which is longer than this call.
            let status = unsafe {
                let run = ort::api().RunWithBinding;
                run(self.session.ptr().cast_mut(), std::ptr::null(), self.binding.ptr())
            };
            // SAFETY: the status is the call's, and is used once.
            unsafe { Error::result_from_status(status) }
        });
        // Whatever came of it, the engine lets go of what was lent for this run.
        self.binding.clear();
        result
    }
}

/// Binds memory for one run of a session.
pub(crate) struct Binder<'b, 'a> {
    binding: &'b mut IoBinding,
    /// What is bound is borrowed until the run is over.
    lent: std::marker::PhantomData<&'a mut ()>,
}

impl<'a> Binder<'_, 'a> {
    /// Binds an input to numbers that are read where they lie.
    pub(crate) fn input<T: Element>(&mut self, name: &CStr, shape: &[i64], data: &'a [T]) -> Result<()> {
        check_len(shape, data.len())?;
        let pointer = data.as_ptr().cast_mut().cast();
        // SAFETY: the slice has as many elements as the shape, of its type; it is borrowed until the run is over, after which
        // nothing stays bound. The engine only reads its inputs.
        let value = unsafe { Lent::new(pointer, size_of_val(data), shape, T::TYPE) }?;
        // SAFETY: the value is alive.
        unsafe { self.bind(name, &value, true) }
    }

    /// Binds an output to memory that is written where it lies.
    pub(crate) fn output<T: Element>(&mut self, name: &CStr, shape: &[i64], data: &'a mut [T]) -> Result<()> {
        check_len(shape, data.len())?;
        // SAFETY: as for an input; the borrow is exclusive.
        let value = unsafe { Lent::new(data.as_mut_ptr().cast(), size_of_val(data), shape, T::TYPE) }?;
        // SAFETY: the value is alive.
        unsafe { self.bind(name, &value, false) }
    }

    /// Binds an input and an output to the same memory: what is appended in place.
    pub(crate) fn in_place<T: Element>(
        &mut self,
        [input, output]: [&CStr; 2],
        shape: &[i64],
        data: &'a mut [T],
    ) -> Result<()> {
        check_len(shape, data.len())?;
        // SAFETY: as for an output. That the same memory is read and written is what GroupQueryAttention documents for a past and
        // a present that share a buffer; the exclusive borrow keeps everybody else out.
        let value = unsafe { Lent::new(data.as_mut_ptr().cast(), size_of_val(data), shape, T::TYPE) }?;
        // SAFETY: the value is alive.
        unsafe {
            self.bind(input, &value, true)?;
            self.bind(output, &value, false)
        }
    }

    /// # Safety
    ///
    /// The value is alive; the binding counts a reference of its own.
    unsafe fn bind(&mut self, name: &CStr, value: &Lent, input: bool) -> Result<()> {
        let api = ort::api();
        let bind = if input { api.BindInput } else { api.BindOutput };
        // SAFETY: the binding is alive and borrowed by `self` alone, the name ends in NUL, and the value is alive.
        let status = unsafe { bind(self.binding.ptr().cast_mut(), name.as_ptr(), value.0.as_ptr()) };
        // SAFETY: the status is the call's, and is used once.
        unsafe { Error::result_from_status(status) }
    }
}

fn check_len(shape: &[i64], len: usize) -> Result<()> {
    let product = shape.iter().try_fold(1_i64, |n, &dim| n.checked_mul(dim));
    if product.and_then(|n| usize::try_from(n).ok()) == Some(len) {
        return Ok(());
    }
    Err(Error::new(format!("{len} elements for a tensor of shape {shape:?}")))
}
