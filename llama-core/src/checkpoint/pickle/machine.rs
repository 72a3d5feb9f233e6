//! The stack machine: instructions, stack, memo and arena.

use std::collections::HashMap;

use super::{Object, Pickle, PickleError, Value};

/// Llama 2 70B takes 30,000 instructions. One takes at most some 150 bytes of memory.
const MAX_INSTRUCTIONS: usize = 1 << 18;

/// Where the pickle's program stands.
pub(super) struct Machine<'a> {
    input: &'a [u8],
    at: usize,
    pub(super) stack: Vec<Value<'a>>,
    /// The stack's length at each MARK.
    marks: Vec<usize>,
    /// A map and not a list: the file chooses the numbers.
    memo: HashMap<u32, Value<'a>>,
    pub(super) objects: Vec<Object<'a>>,
}

impl<'a> Machine<'a> {
    pub(super) fn new(input: &'a [u8]) -> Self {
        Self { input, at: 0, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), objects: Vec::new() }
    }

    /// Runs the program to its STOP.
    pub(super) fn run(mut self) -> Result<Pickle<'a>, PickleError> {
        for _ in 0..MAX_INSTRUCTIONS {
            let at = self.at;
            let [opcode] = self.take()?;
            match opcode {
                // PROTO, FRAME: nothing in them is needed.
                0x80 => drop(self.take::<1>()?),
                0x95 => drop(self.take::<8>()?),
                b'.' => {
                    let value = self.pop()?;
                    return Ok(Pickle { objects: self.objects, value, len: self.at });
                }
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'1' => drop(self.pop_to_mark()?),
                b'2' => {
                    let top = self.top()?;
                    self.stack.push(top);
                }
                b'N' => self.stack.push(Value::None),
                0x88 => self.stack.push(Value::Bool(true)),
                0x89 => self.stack.push(Value::Bool(false)),
                b'J' => {
                    let value = i32::from_le_bytes(self.take()?);
                    self.stack.push(Value::Int(value.into()));
                }
                b'K' => {
                    let value = u8::from_le_bytes(self.take()?);
                    self.stack.push(Value::Int(value.into()));
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.take()?);
                    self.stack.push(Value::Int(value.into()));
                }
                0x8a => {
                    let [len] = self.take()?;
                    self.long(len.into())?;
                }
                b'G' => {
                    self.take::<8>()?;
                    self.stack.push(Value::Float);
                }
                // Strings: BINUNICODE, SHORT_BINUNICODE, BINUNICODE8, and Python 2's BINSTRING and SHORT_BINSTRING.
                b'X' | b'T' => {
                    let len = u32::from_le_bytes(self.take()?);
                    self.string(len.into())?;
                }
                0x8c | b'U' => {
                    let [len] = self.take()?;
                    self.string(len.into())?;
                }
                0x8d => {
                    let len = u64::from_le_bytes(self.take()?);
                    self.string(len)?;
                }
                b')' => self.push(Object::Tuple(Vec::new())),
                0x85..=0x87 => {
                    let from = self.below((opcode - 0x84).into())?;
                    let items = self.stack.split_off(from);
                    self.push(Object::Tuple(items));
                }
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push(Object::Tuple(items));
                }
                b']' => self.push(Object::List(Vec::new())),
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.append(items)?;
                }
                b'}' => self.push(Object::Dict(Vec::new())),
                b's' => {
                    let from = self.below(2)?;
                    let items = self.stack.split_off(from);
                    self.set_items(&items)?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.set_items(&items)?;
                }
                b'c' => {
                    let module = self.line()?;
                    let name = self.line()?;
                    self.global(module, name)?;
                }
                0x93 => {
                    let (Value::Str(name), Value::Str(module)) = (self.pop()?, self.pop()?) else {
                        return Err(self.damaged("a name that is not a string"));
                    };
                    self.global(module, name)?;
                }
                b'R' => self.reduce()?,
                b'b' => self.build()?,
                b'Q' => self.persistent_id()?,
                b'q' => {
                    let [index] = self.take()?;
                    self.memoize(index.into())?;
                }
                b'r' => {
                    let index = u32::from_le_bytes(self.take()?);
                    self.memoize(index)?;
                }
                0x94 => {
                    // The memo has fewer entries than there were instructions, which fit.
                    let index = self.memo.len() as u32;
                    self.memoize(index)?;
                }
                b'h' => {
                    let [index] = self.take()?;
                    self.recall(index.into())?;
                }
                b'j' => {
                    let index = u32::from_le_bytes(self.take()?);
                    self.recall(index)?;
                }
                _ => return Err(PickleError::Opcode { opcode, at }),
            }
        }
        Err(PickleError::TooLong { limit: MAX_INSTRUCTIONS })
    }

    pub(super) fn damaged(&self, what: &'static str) -> PickleError {
        PickleError::Damaged { what, at: self.at }
    }

    fn take_slice(&mut self, len: usize) -> Result<&'a [u8], PickleError> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let taken = rest.get(..len).ok_or(PickleError::Truncated { at: self.input.len() })?;
        self.at += len;
        Ok(taken)
    }

    pub(super) fn take<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take_slice(N)?);
        Ok(bytes)
    }

    /// A line of text, without its end.
    pub(super) fn line(&mut self) -> Result<&'a str, PickleError> {
        /// No module's or function's name is longer; a longer search for the end would read the model.
        const MAX_LEN: usize = 256;
        let rest = self.input.get(self.at..).unwrap_or_default();
        let rest = &rest[..rest.len().min(MAX_LEN)];
        let len = rest
            .iter()
            .position(|&byte| byte == b'\n')
            .ok_or_else(|| self.damaged("a name without an end"))?;
        let line = self.take_slice(len)?;
        self.at += 1; // the line's end, which was found
        std::str::from_utf8(line).map_err(|_| self.damaged("a name that is not UTF-8"))
    }

    pub(super) fn string(&mut self, len: u64) -> Result<(), PickleError> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let bytes = self.take_slice(len)?;
        let text = std::str::from_utf8(bytes).map_err(|_| self.damaged("a string that is not UTF-8"))?;
        self.stack.push(Value::Str(text));
        Ok(())
    }

    /// An integer of `len` bytes, little-endian, two's complement.
    pub(super) fn long(&mut self, len: usize) -> Result<(), PickleError> {
        let bytes = self.take_slice(len)?;
        let negative = bytes.last().is_some_and(|&last| last & 0x80 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 16];
        wide.get_mut(..len)
            .ok_or_else(|| self.damaged("an integer of more than 128 bits"))?
            .copy_from_slice(bytes);
        self.stack.push(Value::Int(i128::from_le_bytes(wide)));
        Ok(())
    }

    pub(super) fn top(&self) -> Result<Value<'a>, PickleError> {
        let from = self.below(1)?;
        Ok(self.stack[from]) // in range: `below` counted
    }

    pub(super) fn pop(&mut self) -> Result<Value<'a>, PickleError> {
        self.below(1)?;
        self.stack.pop().ok_or_else(|| self.damaged("an empty stack"))
    }

    /// The index of the `n`th value from the top, all above the last mark.
    pub(super) fn below(&self, n: usize) -> Result<usize, PickleError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack
            .len()
            .checked_sub(n)
            .filter(|&from| from >= floor)
            .ok_or_else(|| self.damaged("too few values on the stack"))
    }

    pub(super) fn pop_to_mark(&mut self) -> Result<Vec<Value<'a>>, PickleError> {
        let mark = self.marks.pop().ok_or_else(|| self.damaged("no mark on the stack"))?;
        // Nothing is popped below a mark, so the stack is at least that long.
        Ok(self.stack.split_off(mark))
    }

    pub(super) fn push(&mut self, object: Object<'a>) {
        self.stack.push(Value::Object(self.objects.len()));
        self.objects.push(object);
    }

    pub(super) fn top_object(&mut self) -> Result<&mut Object<'a>, PickleError> {
        let top = self.top()?;
        let error = self.damaged("a value where a list or a dictionary is wanted");
        match top {
            Value::Object(index) => self.objects.get_mut(index).ok_or(error),
            _ => Err(error),
        }
    }

    pub(super) fn append(&mut self, new: Vec<Value<'a>>) -> Result<(), PickleError> {
        let error = self.damaged("an item for something that is not a list");
        match self.top_object()? {
            Object::List(items) => {
                items.extend(new);
                Ok(())
            }
            _ => Err(error),
        }
    }

    pub(super) fn set_items(&mut self, new: &[Value<'a>]) -> Result<(), PickleError> {
        let (pairs, rest) = new.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(self.damaged("a key without a value"));
        }
        let error = self.damaged("an item for something that is not a dictionary");
        match self.top_object()? {
            Object::Dict(entries) => {
                entries.extend(pairs.iter().map(|&[key, value]| (key, value)));
                Ok(())
            }
            _ => Err(error),
        }
    }

    pub(super) fn memoize(&mut self, index: u32) -> Result<(), PickleError> {
        let top = self.top()?;
        self.memo.insert(index, top);
        Ok(())
    }

    pub(super) fn recall(&mut self, index: u32) -> Result<(), PickleError> {
        let value = self.memo.get(&index).copied();
        let value = value.ok_or_else(|| self.damaged("a memo that was never made"))?;
        self.stack.push(value);
        Ok(())
    }
}
