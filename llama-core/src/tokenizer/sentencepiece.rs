//! Reads SentencePiece's `tokenizer.model`, a protobuf, by a reader of our own.
//!
//! The wire format is five rules and we need a dozen fields, so that generated code would be more to trust and not less:
//! everything here borrows from the file, allocates only what the file holds, and refuses what it does not understand of
//! the settings that change ids. Field numbers are those of `sentencepiece_model.proto`.

use super::TokenizerError;
use super::vocab::{Kind, Parts, Piece, Rules, SpecialNames, byte_of};

/// The value of a field, as the wire has it.
#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    Varint(u64),
    Fixed32(u32),
    /// Read over: no field that we want is one.
    Fixed64,
    Bytes(Message<'a>),
}

/// A run of fields: the file, or a message within it.
#[derive(Clone, Copy, Debug)]
struct Message<'a> {
    bytes: &'a [u8],
    /// Where it stands in the file, for errors.
    offset: usize,
}

#[derive(Clone, Copy, Debug)]
struct Field<'a> {
    number: u64,
    value: Value<'a>,
    offset: usize,
}

impl<'a> Message<'a> {
    fn malformed(&self, problem: &'static str) -> TokenizerError {
        TokenizerError::Malformed { offset: self.offset, problem }
    }

    fn take(&mut self, len: u64) -> Result<Message<'a>, TokenizerError> {
        let taken = usize::try_from(len).ok().and_then(|len| self.bytes.split_at_checked(len));
        let (head, tail) = taken.ok_or_else(|| self.malformed("a value longer than what is left"))?;
        let head = Message { bytes: head, offset: self.offset };
        *self = Message { bytes: tail, offset: self.offset + head.bytes.len() };
        Ok(head)
    }

    fn varint(&mut self) -> Result<u64, TokenizerError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?.bytes[0]; // take(1) gives one byte
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.malformed("a number of more than 64 bits"))
    }

    /// The next field, or `None` at the end.
    fn next(&mut self) -> Result<Option<Field<'a>>, TokenizerError> {
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let (start, offset) = (*self, self.offset);
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Value::Fixed64
            }
            2 => {
                let len = self.varint()?;
                Value::Bytes(self.take(len)?)
            }
            5 => {
                let mut four = [0; 4];
                four.copy_from_slice(self.take(4)?.bytes); // take(4) gives four bytes
                Value::Fixed32(u32::from_le_bytes(four))
            }
            _ => return Err(start.malformed("an unknown wire type")),
        };
        match key >> 3 {
            0 => Err(start.malformed("a field numbered 0")),
            number => Ok(Some(Field { number, value, offset })),
        }
    }
}

impl<'a> Field<'a> {
    fn wrong_type(&self) -> TokenizerError {
        TokenizerError::Malformed { offset: self.offset, problem: "a field of the wrong type" }
    }

    fn message(&self) -> Result<Message<'a>, TokenizerError> {
        match self.value {
            Value::Bytes(message) => Ok(message),
            _ => Err(self.wrong_type()),
        }
    }

    fn string(&self) -> Result<&'a str, TokenizerError> {
        let message = self.message()?;
        std::str::from_utf8(message.bytes).map_err(|_| message.malformed("a string that is not UTF-8"))
    }

    fn number(&self) -> Result<u64, TokenizerError> {
        match self.value {
            Value::Varint(number) => Ok(number),
            _ => Err(self.wrong_type()),
        }
    }

    fn flag(&self) -> Result<bool, TokenizerError> {
        Ok(self.number()? != 0)
    }

    fn float(&self) -> Result<f32, TokenizerError> {
        match self.value {
            Value::Fixed32(bits) => Ok(f32::from_bits(bits)),
            _ => Err(self.wrong_type()),
        }
    }
}

/// `TrainerSpec`, as far as it matters after training, with the defaults of the proto.
struct Trainer {
    model_type: u64,
    byte_fallback: bool,
    treat_whitespace_as_suffix: bool,
    unk_surface: String,
    names: SpecialNames,
}

/// Reads a `ModelProto`.
///
/// # Errors
///
/// The file is cut short or garbled ([`TokenizerError::Malformed`]), or its settings are not those of a Llama 2
/// tokenizer ([`TokenizerError::Unsupported`]): a model type other than BPE, no byte fallback, a normalizer that maps
/// characters.
pub(super) fn read(bytes: &[u8]) -> Result<Parts, TokenizerError> {
    let mut model = Message { bytes, offset: 0 };
    let (mut pieces, mut normalized) = (Vec::new(), false);
    let mut rules = Rules { remove_extra_whitespaces: true, ..Rules::default() };
    let mut trainer = Trainer {
        model_type: UNIGRAM,
        byte_fallback: false,
        treat_whitespace_as_suffix: false,
        unk_surface: rules.unk_surface.clone(),
        names: SpecialNames::default(),
    };
    while let Some(field) = model.next()? {
        match field.number {
            1 => pieces.push(piece(field.message()?, pieces.len())?),
            2 => read_trainer(field.message()?, &mut trainer)?,
            3 => {
                read_normalizer(field.message()?, &mut rules)?;
                normalized = true;
            }
            5 => read_normalizer(field.message()?, &mut Rules::default())?, // must map nothing either
            _ => {}
        }
    }
    if pieces.is_empty() {
        return Err(TokenizerError::Malformed { offset: 0, problem: "no piece" });
    }
    let unsupported = |what, found: &str, supported| TokenizerError::Unsupported {
        what,
        found: found.to_owned(),
        supported,
    };
    if trainer.model_type != BPE {
        let name = match trainer.model_type {
            UNIGRAM => "unigram",
            3 => "word",
            4 => "char",
            _ => "unknown",
        };
        return Err(unsupported("the model type", name, "BPE"));
    }
    if !trainer.byte_fallback {
        return Err(unsupported("byte fallback", "off", "on"));
    }
    if trainer.treat_whitespace_as_suffix {
        return Err(unsupported("white space", "written as a suffix", "a prefix"));
    }
    if !normalized {
        // Every model says how it prepares text, at its end: this one was cut short between two fields.
        return Err(TokenizerError::Malformed { offset: bytes.len(), problem: "no normalizer" });
    }
    rules.unk_surface = trainer.unk_surface;
    Ok(Parts { pieces, merges: None, rules, names: trainer.names })
}

const UNIGRAM: u64 = 1;
const BPE: u64 = 2;

/// `ModelProto.SentencePiece`.
fn piece(mut message: Message<'_>, id: usize) -> Result<Piece, TokenizerError> {
    let (mut text, mut score, mut kind) = ("", 0.0, 1);
    while let Some(field) = message.next()? {
        match field.number {
            1 => text = field.string()?,
            2 => score = field.float()?,
            3 => kind = field.number()?,
            _ => {}
        }
    }
    let unsupported = |found: &str| TokenizerError::Unsupported {
        what: "a piece",
        found: format!("{found} ({text:?})"),
        supported: "a normal, unknown, control or byte piece",
    };
    let kind = match kind {
        1 => Kind::Normal,
        2 => Kind::Unknown,
        3 => Kind::Control,
        4 => return Err(unsupported("user-defined")),
        5 => return Err(unsupported("unused")),
        6 => Kind::Byte(
            byte_of(text)
                .ok_or(TokenizerError::BadPiece { id, problem: "is a byte, but not of the form <0xHH>" })?,
        ),
        _ => return Err(unsupported("of an unknown type")),
    };
    Ok(Piece { text: text.to_owned(), kind, score: Some(score) })
}

/// `TrainerSpec`.
fn read_trainer(mut message: Message<'_>, trainer: &mut Trainer) -> Result<(), TokenizerError> {
    while let Some(field) = message.next()? {
        match field.number {
            3 => trainer.model_type = field.number()?,
            24 => trainer.treat_whitespace_as_suffix = field.flag()?,
            35 => trainer.byte_fallback = field.flag()?,
            44 => trainer.unk_surface = field.string()?.to_owned(),
            45 => trainer.names.unk = field.string()?.to_owned(),
            46 => trainer.names.bos = field.string()?.to_owned(),
            47 => trainer.names.eos = field.string()?.to_owned(),
            48 => trainer.names.pad = field.string()?.to_owned(),
            _ => {}
        }
    }
    Ok(())
}

/// `NormalizerSpec`. A map of characters is refused rather than skipped: it would change ids.
fn read_normalizer(mut message: Message<'_>, rules: &mut Rules) -> Result<(), TokenizerError> {
    let (mut name, mut maps) = ("", false);
    while let Some(field) = message.next()? {
        match field.number {
            1 => name = field.string()?,
            2 => maps = !field.message()?.bytes.is_empty(),
            3 => rules.add_dummy_prefix = field.flag()?,
            4 => rules.remove_extra_whitespaces = field.flag()?,
            5 => rules.escape_whitespaces = field.flag()?,
            _ => {}
        }
    }
    if maps {
        return Err(TokenizerError::Unsupported {
            what: "the normalizer",
            found: format!("{name:?}, which maps characters"),
            supported: "\"identity\"",
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn field(number: u8, payload: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, payload.len() as u8], payload].concat()
    }

    #[test]
    fn a_length_beyond_the_file_is_an_error_and_no_allocation() {
        for len in [1u64, 200, u64::from(u32::MAX), u64::MAX] {
            let mut bytes = vec![0x0a];
            let mut rest = len;
            while rest >= 0x80 {
                bytes.push(rest as u8 | 0x80);
                rest >>= 7;
            }
            bytes.push(rest as u8);
            assert!(matches!(read(&bytes), Err(TokenizerError::Malformed { .. })), "{len}");
        }
    }

    #[test]
    fn unigram_is_named() {
        let bytes = field(1, &field(1, b"a"));
        let error = read(&bytes).unwrap_err();
        assert_eq!(error.to_string(), "the model type is unigram, and only BPE is supported");
    }

    #[test]
    fn a_map_of_characters_is_refused_in_either_normalizer() {
        for number in [3, 5] {
            let spec = [field(1, b"nmt_nfkc"), field(2, b"map")].concat();
            let error = read(&field(number, &spec)).unwrap_err();
            assert!(error.is_unsupported(), "{error}");
        }
    }

    proptest! {
        #[test]
        fn garbage_is_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(read(&bytes).is_err());
        }
    }
}
