//! The pickle of a `.pth` file, interpreted as data: tensors by name, and where their elements lie.
//!
//! A pickle is a program for a stack machine that may call any Python function. Here the machine knows the few functions
//! that `torch.save` needs, as a closed enum, so that nothing in a file can run; every other name is an error that says it.
//!
//! Every object lives in one arena and refers to others by index: a structure that contains itself is no loop to follow and no
//! recursion to drop. An instruction makes at most one object, one stack entry and one memo entry, and copies nothing whose
//! length it chooses, so the limit on instructions is the limit on memory and on time.

mod calls;
mod machine;

use machine::Machine;

/// Why a pickle cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PickleError {
    /// A Python function or class that has no business in a checkpoint of tensors. Nothing was run.
    #[error(
        "the pickle asks for {name}, which is not among the names that a checkpoint of tensors needs; nothing was run"
    )]
    Global {
        /// The name, with its module: `os.system`.
        name: String,
    },
    /// An instruction that a checkpoint of tensors does not need, or that does not exist.
    #[error("the pickle has the instruction {opcode:#04x} at byte {at}, which is not supported")]
    Opcode {
        /// The instruction.
        opcode: u8,
        /// Where it stands in the pickle.
        at: usize,
    },
    /// The pickle ends before its STOP instruction.
    #[error("the pickle ends at byte {at}, before it is complete")]
    Truncated {
        /// Its length.
        at: usize,
    },
    /// The instruction's operands are not what it works on.
    #[error("damaged pickle: {what} at byte {at}")]
    Damaged {
        /// What was found or expected.
        what: &'static str,
        /// Where it stands in the pickle.
        at: usize,
    },
    /// More instructions than any checkpoint has.
    #[error("the pickle has more than {limit} instructions")]
    TooLong {
        /// The limit.
        limit: usize,
    },
    /// Something else than a dictionary of tensors.
    #[error("the pickle holds {found}; expected {expected}")]
    Content {
        /// What it holds.
        found: String,
        /// What a checkpoint holds.
        expected: &'static str,
    },
}

/// A tensor: a strided view of a storage. Nothing of it is checked yet.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PickledTensor<'a> {
    pub(super) storage: Storage<'a>,
    /// The first element, counted in elements of the storage.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    /// In elements.
    pub(super) strides: Vec<usize>,
}

/// A run of elements of one type, which tensors share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Storage<'a> {
    /// PyTorch's class name: `FloatStorage`.
    pub(super) class: &'static str,
    /// The name of the entry that holds it.
    pub(super) key: &'a str,
    pub(super) n_elements: usize,
}

/// What a pickle can hold. Strings lie in the file; everything that has parts is an index into the arena.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i128),
    Float,
    Str(&'a str),
    Global(Global),
    Object(usize),
}

#[derive(Debug)]
enum Object<'a> {
    Tuple(Vec<Value<'a>>),
    List(Vec<Value<'a>>),
    Dict(Vec<(Value<'a>, Value<'a>)>),
    Storage(Storage<'a>),
    Tensor(PickledTensor<'a>),
}

/// The functions and classes that a checkpoint may name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(&'static str),
}

impl Global {
    fn find(module: &str, name: &str) -> Option<Self> {
        const STORAGES: [&str; 10] = [
            "FloatStorage",
            "HalfStorage",
            "BFloat16Storage",
            "DoubleStorage",
            "LongStorage",
            "IntStorage",
            "ShortStorage",
            "CharStorage",
            "ByteStorage",
            "BoolStorage",
        ];
        match (module, name) {
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Self::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Some(Self::RebuildParameter),
            ("torch", name) => STORAGES.into_iter().find(|&class| class == name).map(Self::Storage),
            _ => None,
        }
    }
}

/// A pickle that was run to its end.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    objects: Vec<Object<'a>>,
    /// What it holds.
    pub(super) value: Value<'a>,
    /// Its length in bytes: a legacy file holds several, one after the other.
    pub(super) len: usize,
}

impl<'a> Pickle<'a> {
    /// Runs the pickle at the start of `input`.
    pub(super) fn read(input: &'a [u8]) -> Result<Self, PickleError> {
        Machine::new(input).run()
    }

    /// The tensors of a dictionary of tensors, in the file's order.
    pub(super) fn tensors(&self) -> Result<Vec<(&'a str, &PickledTensor<'a>)>, PickleError> {
        let wrong =
            |found: String| PickleError::Content { found, expected: "a dictionary of tensors by name" };
        let entries = self.dict(self.value).ok_or_else(|| wrong(self.describe(self.value)))?;
        entries
            .iter()
            .map(|&(key, value)| match (key, self.object(value)) {
                (Value::Str(name), Some(Object::Tensor(tensor))) => Ok((name, tensor)),
                (Value::Str(name), _) => Err(wrong(format!("{} at key {name:?}", self.describe(value)))),
                _ => Err(wrong(format!("a dictionary with {} as a key", self.describe(key)))),
            })
            .collect()
    }

    /// The value of a dictionary's key.
    pub(super) fn get(&self, key: &str) -> Option<Value<'a>> {
        let entries = self.dict(self.value)?;
        let (_, value) = entries.iter().find(|(k, _)| *k == Value::Str(key))?;
        Some(*value)
    }

    /// The strings of a list of strings.
    pub(super) fn strings(&self) -> Option<Vec<&'a str>> {
        let Some(Object::List(items)) = self.object(self.value) else {
            return None;
        };
        items
            .iter()
            .map(|item| match item {
                Value::Str(text) => Some(*text),
                _ => None,
            })
            .collect()
    }

    fn object(&self, value: Value<'a>) -> Option<&Object<'a>> {
        match value {
            Value::Object(index) => self.objects.get(index),
            _ => None,
        }
    }

    fn dict(&self, value: Value<'a>) -> Option<&[(Value<'a>, Value<'a>)]> {
        match self.object(value) {
            Some(Object::Dict(entries)) => Some(entries),
            _ => None,
        }
    }

    fn describe(&self, value: Value<'a>) -> String {
        match (value, self.object(value)) {
            (_, Some(Object::Tuple(items))) => format!("a tuple of {}", items.len()),
            (_, Some(Object::List(items))) => format!("a list of {}", items.len()),
            (_, Some(Object::Dict(entries))) => format!("a dictionary of {}", entries.len()),
            (_, Some(Object::Storage(_))) => "a storage".to_owned(),
            (_, Some(Object::Tensor(_))) => "a tensor".to_owned(),
            (Value::None, _) => "None".to_owned(),
            (Value::Bool(value), _) => format!("the boolean {value}"),
            (Value::Int(value), _) => format!("the number {value}"),
            (Value::Str(text), _) => format!("the string {text:?}"),
            (Value::Float, _) => "a number".to_owned(),
            (Value::Global(_) | Value::Object(_), _) => "a function".to_owned(),
        }
    }
}
