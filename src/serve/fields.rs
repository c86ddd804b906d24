//! The fields of a request's JSON object, each taken out once and checked; what is left at the end is unknown.

use super::error::ApiError;
use axum::http::StatusCode;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

type Result<T> = std::result::Result<T, ApiError>;

/// The fields not yet taken. A field that is null counts as absent.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    /// Reads a body.
    pub fn parse(body: &[u8]) -> Result<Self> {
        let bad = |message: String| Err(ApiError::new(StatusCode::BAD_REQUEST, message).code("invalid_json"));
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(other) => bad(format!("the body is {}; expected a JSON object", kind(&other))),
            Err(e) => bad(format!("the body is not JSON: {e}")),
        }
    }

    /// A field, whatever it holds.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.0.shift_remove(name).filter(|v| !v.is_null())
    }

    /// A number; which ones are good, [`SamplingParams::check`](crate::model::generate::SamplingParams::check) knows.
    pub fn number(&mut self, name: &str) -> Result<Option<f32>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_f64() {
            Some(x) => Ok(Some(x as f32)),
            None => Err(expected(name, "a number", &value)),
        }
    }

    /// A whole number within a range.
    pub fn integer(&mut self, name: &str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_u64().and_then(|x| usize::try_from(x).ok()) {
            Some(x) if range.contains(&x) => Ok(Some(x)),
            _ => Err(expected(name, &format!("a whole number from {} to {}", range.start(), range.end()), &value)),
        }
    }

    /// A seed: any whole number of 64 bits; a negative one stands for its two's complement.
    pub fn seed(&mut self, name: &str) -> Result<Option<u64>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned)) {
            Some(x) => Ok(Some(x)),
            None => Err(expected(name, "a whole number of 64 bits", &value)),
        }
    }

    /// True or false.
    pub fn boolean(&mut self, name: &str) -> Result<Option<bool>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| expected(name, "true or false", &value))
    }

    /// A text.
    pub fn text(&mut self, name: &str) -> Result<Option<String>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(expected(name, "a text", &other)),
        }
    }

    /// A text, or up to `most` of them; none of them empty.
    pub fn texts(&mut self, name: &str, most: usize) -> Result<Vec<String>> {
        let wanted = format!("a text, or up to {most} of them, none empty");
        let texts = match self.take(name) {
            None => return Ok(Vec::new()),
            Some(Value::String(text)) => vec![text],
            Some(Value::Array(items)) if items.len() <= most => {
                let text = |v: Value| v.as_str().map(str::to_owned).ok_or_else(|| expected(name, &wanted, &v));
                items.into_iter().map(text).collect::<Result<_>>()?
            }
            Some(other) => return Err(expected(name, &wanted, &other)),
        };
        if texts.iter().any(String::is_empty) {
            return Err(ApiError::field(name, format!("{name}: expected {wanted}; one is empty")));
        }
        Ok(texts)
    }

    /// An object with fields of its own.
    pub fn object(&mut self, name: &str) -> Result<Option<Fields>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(Fields(fields))),
            Some(other) => Err(expected(name, "an object", &other)),
        }
    }

    /// A field of OpenAI's that this server cannot honour: refused, unless its value asks for nothing.
    pub fn unsupported(&mut self, name: &str, asks_nothing: impl Fn(&Value) -> bool) -> Result<()> {
        match self.take(name) {
            Some(value) if !asks_nothing(&value) => {
                Err(ApiError::field(name, format!("{name}: this server does not support it; leave it out")).code("unsupported_parameter"))
            }
            _ => Ok(()),
        }
    }

    /// Fields that change nothing of an answer.
    pub fn ignore(&mut self, names: &[&str]) {
        names.iter().for_each(|name| drop(self.take(name)));
    }

    /// Refuses what nobody took. `prefix` is the object's own name, with a dot.
    pub fn finish(self, prefix: &str) -> Result<()> {
        match self.0.into_iter().find(|(_, v)| !v.is_null()) {
            None => Ok(()),
            Some((name, _)) => {
                let name = format!("{prefix}{name}");
                Err(ApiError::field(&name, format!("{name}: no field of this request")).code("unknown_parameter"))
            }
        }
    }
}

/// An error that says what a field should be and what it is.
pub(super) fn expected(name: &str, wanted: &str, found: &Value) -> ApiError {
    ApiError::field(name, format!("{name}: expected {wanted}, found {}", kind(found)))
}

/// A value in words: short ones as they are.
fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => n.to_string(),
        Value::String(s) if s.len() <= 40 => format!("the text {value}"),
        Value::String(_) => "a text".to_owned(),
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(_) => "an object".to_owned(),
    }
}
