//! Lines of JSON, as every command reads them.

use serde::de::DeserializeOwned;

use crate::error::json_message;
use crate::{Error, Result};

/// A line without its ending, and without the mark of byte order that some editors put before the first one.
pub fn trim(line: &[u8]) -> &[u8] {
    line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line).trim_ascii_end()
}

/// Reads a line that is to hold one object. (serde alone would also take a list of the fields' values.)
///
/// # Errors
///
/// What is wrong with the line, and at which column.
pub fn object<T: DeserializeOwned>(line: &[u8]) -> Result<T> {
    let line = trim(line);
    let wrong = |e: serde_json::Error| Error::input(format!("expected a JSON object: {}", json_message(&e)));
    if !line.trim_ascii_start().starts_with(b"{") {
        let what = serde_json::from_slice::<serde_json::Value>(line).map_err(wrong)?;
        return Err(Error::input(format!("expected a JSON object, found {}", super::task::type_name(&what))));
    }
    serde_json::from_slice(line).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Line {
        a: i64,
    }

    #[test]
    fn only_objects_are_objects() {
        let read = |text: &[u8]| object::<Line>(text).map(|l| l.a).map_err(|e| e.to_string());
        assert_eq!(read(b"\xef\xbb\xbf{\"a\": 1}\r\n"), Ok(1));
        assert_eq!(read(b" {\"a\": 2}"), Ok(2));
        let refused = |text: &[u8], why: &str| {
            let said = read(text).unwrap_err();
            assert!(said.contains(why), "{said}");
        };
        refused(b"[3]", "expected a JSON object, found a list");
        refused(b"null", "found null");
        refused(b"{\"a\": \"x\"}", "expected a JSON object: ");
        refused(b"nonsense", "expected a JSON object: ");
        refused(b"", "expected a JSON object: ");
    }
}
