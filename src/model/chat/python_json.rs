//! JSON as Python's `json.dumps(..., ensure_ascii=False)` writes it.

use serde_json::{Number, Value};

/// `json.dumps` with these options; `separators` are those between items and after a key.
pub(super) fn dumps(value: &Value, indent: Option<usize>, separators: Option<(String, String)>, sort_keys: bool) -> String {
    // With an indent, Python leaves no blank at the end of a line.
    let (item, key) = separators.unwrap_or_else(|| ((if indent.is_some() { "," } else { ", " }).to_owned(), ": ".to_owned()));
    let writer = Writer { indent, item, key, sort_keys };
    let mut out = String::new();
    writer.write(value, 0, &mut out);
    out
}

/// The same with `ensure_ascii=True`: all other characters, which stand in strings only, as their UTF-16 units.
pub(super) fn ascii(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            c if c.is_ascii() => out.push(c),
            c => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}"))),
        }
    }
    out
}

struct Writer {
    indent: Option<usize>,
    item: String,
    key: String,
    sort_keys: bool,
}

impl Writer {
    fn write(&self, value: &Value, depth: usize, out: &mut String) {
        match value {
            Value::Number(n) => out.push_str(&number(n)),
            Value::Array(items) => self.list(('[', ']'), items, depth, out, |item, out| self.write(item, depth + 1, out)),
            Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                if self.sort_keys {
                    entries.sort_unstable_by_key(|(k, _)| *k);
                }
                self.list(('{', '}'), &entries, depth, out, |(k, v), out| {
                    out.push_str(&Value::from(k.as_str()).to_string());
                    out.push_str(&self.key);
                    self.write(v, depth + 1, out);
                });
            }
            // null, true, false and strings are the same: both escape `"`, `\` and control characters only, and with the same letters.
            other => out.push_str(&other.to_string()),
        }
    }

    fn list<T>(&self, brackets: (char, char), items: &[T], depth: usize, out: &mut String, mut write: impl FnMut(&T, &mut String)) {
        let line = |depth: usize, out: &mut String| {
            if let Some(n) = self.indent {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', n * depth));
            }
        };
        out.push(brackets.0);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                out.push_str(&self.item);
            }
            line(depth + 1, out);
            write(item, out);
        }
        if !items.is_empty() {
            line(depth, out);
        }
        out.push(brackets.1);
    }
}

/// Whole numbers as they are; others as Python's `repr`: the shortest digits, with an exponent below 1e-4 and from 1e16 on.
fn number(n: &Number) -> String {
    let Some(x) = n.as_f64().filter(|_| n.is_f64()) else { return n.to_string() };
    let scientific = format!("{x:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    match exponent.parse::<i32>() {
        Ok(e) if (-4..16).contains(&e) => {
            let plain = x.to_string();
            if plain.contains('.') { plain } else { plain + ".0" }
        }
        Ok(e) => format!("{digits}e{}{:02}", if e < 0 { '-' } else { '+' }, e.abs()),
        Err(_) => scientific,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_are_pythons() {
        let v = json!([1, -2, 1.0, 0.1, 1e16, 1.5e-7, 123456789012345680.0, 1e-4, 9007199254740993i64]);
        assert_eq!(dumps(&v, None, None, false), "[1, -2, 1.0, 0.1, 1e+16, 1.5e-07, 1.2345678901234568e+17, 0.0001, 9007199254740993]");
    }

    #[test]
    fn layout_is_pythons() {
        let v = json!({"b": [], "a": {"x": "é\u{7f}\u{1}\n\"\\/"}, "c": [[1]]});
        assert_eq!(dumps(&v, None, None, false), "{\"b\": [], \"a\": {\"x\": \"é\u{7f}\\u0001\\n\\\"\\\\/\"}, \"c\": [[1]]}");
        let compact = Some((",".to_owned(), ":".to_owned()));
        assert_eq!(dumps(&json!({"b": [1, 2], "a": 1}), None, compact, true), "{\"a\":1,\"b\":[1,2]}");
        assert_eq!(dumps(&json!({"b": [1, {}]}), Some(1), None, false), "{\n \"b\": [\n  1,\n  {}\n ]\n}");
    }
}
