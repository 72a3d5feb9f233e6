//! [`Fields`]: a JSON object from which fields are taken one by one.

use std::ops::RangeInclusive;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::BadRequest;
use super::json::Unambiguous;

/// The fields of an object that nobody has taken yet.
#[derive(Debug)]
pub(super) struct Fields {
    left: Map<String, Value>,
    /// The object's own path; empty for the request.
    path: String,
}

impl Fields {
    /// The fields of a request.
    pub(super) fn parse(body: &[u8]) -> Result<Self, BadRequest> {
        let refuse = |message| BadRequest { message, param: None, code: None };
        match serde_json::from_slice(body) {
            Ok(Unambiguous(Value::Object(left))) => Ok(Self { left, path: String::new() }),
            Ok(_) => Err(refuse("the body is to be a JSON object".to_owned())),
            Err(error) => Err(refuse(format!("the body could not be read as JSON: {error}"))),
        }
    }

    /// The fields of an object within the request.
    pub(super) fn of(value: Value, path: String) -> Result<Self, BadRequest> {
        match value {
            Value::Object(left) => Ok(Self { left, path }),
            other => {
                let message = format!("`{path}` is {}, expected an object", kind(&other));
                Err(BadRequest::new(path, message))
            }
        }
    }

    /// A field's path in the request.
    pub(super) fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// The field as it is; `None` where it is absent or `null`.
    pub(super) fn take_value(&mut self, name: &str) -> Option<Value> {
        self.left.remove(name).filter(|value| !value.is_null())
    }

    pub(super) fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, BadRequest> {
        let Some(value) = self.take_value(name) else { return Ok(None) };
        serde_json::from_value(value).map(Some).map_err(|error| {
            let path = self.path(name);
            let message = format!("`{path}`: {}", in_words(error.to_string()));
            BadRequest::new(path, message)
        })
    }

    pub(super) fn require<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, BadRequest> {
        self.take(name)?.ok_or_else(|| {
            let path = self.path(name);
            let message = format!("`{path}` is missing");
            BadRequest::new(path, message).with_code("missing_required_parameter")
        })
    }

    /// A number within a range.
    pub(super) fn take_within<T>(
        &mut self,
        name: &str,
        range: RangeInclusive<T>,
    ) -> Result<Option<T>, BadRequest>
    where
        T: DeserializeOwned + PartialOrd + std::fmt::Display,
    {
        let value = self.take(name)?;
        if let Some(value) = value.as_ref().filter(|value| !range.contains(value)) {
            let path = self.path(name);
            let message = format!("`{path}` is {value}, expected {} to {}", range.start(), range.end());
            return Err(BadRequest::new(path, message));
        }
        Ok(value)
    }

    /// Refuses a field, but for values that ask for nothing.
    pub(super) fn refuse(
        &mut self,
        name: &str,
        is_nothing: impl FnOnce(&Value) -> bool,
    ) -> Result<(), BadRequest> {
        match self.take_value(name) {
            Some(value) if !is_nothing(&value) => Err(BadRequest::unsupported(self.path(name))),
            _ => Ok(()),
        }
    }

    /// Lets fields pass that do not change the answer.
    pub(super) fn ignore(&mut self, names: &[&str]) {
        names.iter().for_each(|name| _ = self.left.remove(*name));
    }

    /// Nothing else is to be taken: what is left does not exist.
    pub(super) fn finish(self) -> Result<(), BadRequest> {
        match self.left.keys().next() {
            Some(name) => {
                let path = self.path(name);
                let message = format!("there is no field `{path}`");
                Err(BadRequest::new(path, message).with_code("unknown_parameter"))
            }
            None => Ok(()),
        }
    }
}

/// What a value is, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Names of types that mean nothing to a client, said in JSON's words.
fn in_words(message: String) -> String {
    const WORDS: [(&str, &str); 7] = [
        ("expected f64", "expected a number"),
        ("expected f32", "expected a number"),
        ("expected i64", "expected a whole number"),
        ("expected u32", "expected a whole number of at least 0"),
        ("expected usize", "expected a whole number of at least 0"),
        ("expected a sequence", "expected a list"),
        ("expected a map", "expected an object"),
    ];
    WORDS.iter().fold(message, |message, (name, words)| message.replace(name, words))
}
