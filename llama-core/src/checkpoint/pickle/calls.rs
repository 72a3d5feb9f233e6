//! What a checkpoint's pickle may call, and what comes of it.

use super::machine::Machine;
use super::{Global, Object, PickleError, PickledTensor, Storage, Value};

impl<'a> Machine<'a> {
    pub(super) fn global(&mut self, module: &str, name: &str) -> Result<(), PickleError> {
        let global = Global::find(module, name)
            .ok_or_else(|| PickleError::Global { name: format!("{module}.{name}") })?;
        self.stack.push(Value::Global(global));
        Ok(())
    }

    fn tuple(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        match value {
            Value::Object(index) => match self.objects.get(index)? {
                Object::Tuple(items) => Some(items),
                _ => None,
            },
            _ => None,
        }
    }

    /// A short tuple of integers, none negative. Short, because many tensors may refer to one tuple, and each copies it.
    fn sizes(&self, value: Value<'a>) -> Option<Vec<usize>> {
        const MAX_DIMS: usize = 8;
        let items = self.tuple(value).filter(|items| items.len() <= MAX_DIMS)?;
        items.iter().map(|&item| size(item)).collect()
    }

    /// Calls a function of the closed set.
    pub(super) fn reduce(&mut self) -> Result<(), PickleError> {
        let arguments = self.pop()?;
        let function = self.pop()?;
        let arguments =
            self.tuple(arguments).ok_or_else(|| self.damaged("a call without a tuple of arguments"))?;
        match (function, arguments) {
            (Value::Global(Global::OrderedDict), []) => self.push(Object::Dict(Vec::new())),
            (
                Value::Global(Global::RebuildTensor),
                // requires_grad, hooks and metadata say nothing about the elements.
                &[storage, offset, shape, strides, _, _] | &[storage, offset, shape, strides, _, _, _],
            ) => {
                let tensor = self.tensor(storage, offset, shape, strides).ok_or_else(|| {
                    self.damaged("a tensor whose storage, offset, shape or strides are not")
                })?;
                self.push(Object::Tensor(tensor));
            }
            (Value::Global(Global::RebuildParameter), &[tensor, _, _]) => match tensor {
                Value::Object(index) if matches!(self.objects.get(index), Some(Object::Tensor(_))) => {
                    self.stack.push(tensor);
                }
                _ => return Err(self.damaged("a parameter that is not a tensor")),
            },
            _ => return Err(self.damaged("a call of something else, or with other arguments")),
        }
        Ok(())
    }

    fn tensor(
        &self,
        storage: Value<'a>,
        offset: Value<'a>,
        shape: Value<'a>,
        strides: Value<'a>,
    ) -> Option<PickledTensor<'a>> {
        let Value::Object(index) = storage else {
            return None;
        };
        let Object::Storage(storage) = *self.objects.get(index)? else {
            return None;
        };
        Some(PickledTensor {
            storage,
            offset: size(offset)?,
            shape: self.sizes(shape)?,
            strides: self.sizes(strides)?,
        })
    }

    /// Sets an object's attributes: `state_dict()` leaves `_metadata` on its dictionary, which says nothing about tensors.
    pub(super) fn build(&mut self) -> Result<(), PickleError> {
        self.pop()?;
        let error = self.damaged("attributes for something that is not a dictionary");
        match self.top_object()? {
            Object::Dict(_) => Ok(()),
            _ => Err(error),
        }
    }

    /// A storage: `('storage', class, key, location, n_elements)`, and in legacy files a view, which must be None.
    pub(super) fn persistent_id(&mut self) -> Result<(), PickleError> {
        let id = self.pop()?;
        let storage = match self.tuple(id) {
            Some(
                &[
                    Value::Str("storage"),
                    Value::Global(Global::Storage(class)),
                    Value::Str(key),
                    Value::Str(_),
                    n_elements,
                ]
                | &[
                    Value::Str("storage"),
                    Value::Global(Global::Storage(class)),
                    Value::Str(key),
                    Value::Str(_),
                    n_elements,
                    Value::None,
                ],
            ) => size(n_elements).map(|n_elements| Storage { class, key, n_elements }),
            _ => None,
        };
        let storage = storage.ok_or_else(|| self.damaged("a reference that is not to a storage"))?;
        self.push(Object::Storage(storage));
        Ok(())
    }
}

fn size(value: Value<'_>) -> Option<usize> {
    match value {
        Value::Int(value) => usize::try_from(value).ok(),
        _ => None,
    }
}
