//! What chat templates take from Python and Jinja2 and minijinja does otherwise: methods of texts and lists, filters that forgive what is
//! not there, tests.

use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};

/// Adds all of it to an environment.
pub(super) fn extend(environment: &mut Environment<'_>) {
    environment.set_unknown_method_callback(method);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("items", items);
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map | ValueKind::String)
    });
}

/// `length`: 0 of what is undefined, as Jinja2 says.
fn length(value: &Value) -> Result<usize, Error> {
    match value.len() {
        Some(n) => Ok(n),
        None if value.is_undefined() => Ok(0),
        None => Err(Error::new(ErrorKind::InvalidOperation, format!("cannot calculate length of value of type {}", value.kind()))),
    }
}

/// `items`: the pairs of a mapping, none of what is undefined.
fn items(value: &Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(Value::from(Vec::<Value>::new())),
        ValueKind::Map => value.try_iter()?.map(|key| Ok(Value::from(vec![key.clone(), value.get_item(&key)?]))).collect(),
        kind => Err(Error::new(ErrorKind::InvalidOperation, format!("cannot take items of a value of type {kind}"))),
    }
}

/// Methods that templates call as in Python; what is not here is `pycompat`'s.
fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let own = match value.as_str() {
        Some(text) => text_method(text, name, args),
        None if name == "index" && value.kind() == ValueKind::Seq => Some(index_of(value, args)),
        None => None,
    };
    own.unwrap_or_else(|| minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args))
}

/// `list.index(item)`.
fn index_of(list: &Value, args: &[Value]) -> Result<Value, Error> {
    let (item,): (&Value,) = from_args(args)?;
    let place = list.try_iter()?.position(|other| other == *item);
    place.map(Value::from).ok_or_else(|| Error::new(ErrorKind::InvalidOperation, format!("{item} is not in list")))
}

fn text_method(text: &str, name: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    Some(match name {
        "removeprefix" | "removesuffix" => one(args).map(|part| {
            let stripped = if name == "removeprefix" { text.strip_prefix(part) } else { text.strip_suffix(part) };
            Value::from(stripped.unwrap_or(text))
        }),
        "split" | "rsplit" => split(text, args, name == "rsplit"),
        "splitlines" => from_args(args).and_then(|(keep, kwargs): (Option<bool>, Kwargs)| {
            let keep = keep.or(kwargs.get("keepends")?).unwrap_or(false);
            kwargs.assert_all_used()?;
            Ok(split_lines(text, keep).into())
        }),
        "partition" | "rpartition" => one(args).map(|separator| partition(text, separator, name == "rpartition")),
        "find" | "rfind" | "index" | "rindex" => find(text, args, name),
        "zfill" | "ljust" | "rjust" | "center" => pad(text, args, name),
        "casefold" if args.is_empty() => Ok(text.to_lowercase().replace('ß', "ss").into()),
        "swapcase" if args.is_empty() => {
            let swap = |c: char| if c.is_uppercase() { c.to_lowercase().collect::<String>() } else { c.to_uppercase().collect() };
            Ok(text.chars().map(swap).collect::<String>().into())
        }
        "isdecimal" if args.is_empty() => Ok((!text.is_empty() && text.chars().all(|c| c.is_ascii_digit())).into()),
        _ => return None,
    })
}

/// The only argument, a text.
fn one(args: &[Value]) -> Result<&str, Error> {
    let (text,): (&str,) = from_args(args)?;
    Ok(text)
}

/// `split(sep=None, maxsplit=-1)` and `rsplit`.
fn split(text: &str, args: &[Value], from_the_end: bool) -> Result<Value, Error> {
    let (separator, most, kwargs): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
    let separator: Option<Value> = if separator.is_some() { separator } else { kwargs.get("sep")? };
    let most: Option<i64> = if most.is_some() { most } else { kwargs.get("maxsplit")? };
    kwargs.assert_all_used()?;
    let most = most.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX).saturating_add(1);
    let separator = separator.filter(|s| !s.is_none());
    let parts: Vec<&str> = match separator.as_ref().map(|s| s.as_str()) {
        Some(Some("")) => return Err(Error::new(ErrorKind::InvalidOperation, "empty separator")),
        Some(None) => return Err(Error::new(ErrorKind::InvalidOperation, "the separator must be a string or none")),
        Some(Some(s)) if from_the_end => text.rsplitn(most, s).collect(),
        Some(Some(s)) => text.splitn(most, s).collect(),
        None => blanks(text, most, from_the_end),
    };
    Ok(if from_the_end { parts.into_iter().rev().collect() } else { parts.into_iter().collect() })
}

/// `text` cut at runs of white space, into at most `most` parts; those from the end come last first. The last part is what is left.
fn blanks(text: &str, most: usize, from_the_end: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = if from_the_end { text.trim_end() } else { text.trim_start() };
    while !rest.is_empty() {
        let cut = if from_the_end { rest.rfind(char::is_whitespace) } else { rest.find(char::is_whitespace) };
        let Some(at) = cut.filter(|_| parts.len() + 1 < most) else {
            parts.push(rest);
            break;
        };
        let (before, after) = rest.split_at(at);
        if from_the_end {
            parts.push(after.trim_start());
            rest = before.trim_end();
        } else {
            parts.push(before);
            rest = after.trim_start();
        }
    }
    parts
}

fn split_lines(text: &str, keep: bool) -> Vec<String> {
    // Python's boundaries: the common ones and the separators that few texts have.
    let ends = |c: char| matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let (mut out, mut line) = (Vec::new(), String::new());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if !ends(c) {
            line.push(c);
            continue;
        }
        if keep {
            line.push(c);
        }
        if c == '\r' && chars.next_if_eq(&'\n').is_some() && keep {
            line.push('\n');
        }
        out.push(std::mem::take(&mut line));
    }
    if !line.is_empty() {
        out.push(line);
    }
    out
}

fn partition(text: &str, separator: &str, last: bool) -> Value {
    let cut = if last { text.rsplit_once(separator) } else { text.split_once(separator) };
    let (before, found, after) = match (cut, last) {
        (Some((before, after)), _) => (before, separator, after),
        (None, false) => (text, "", ""),
        (None, true) => ("", "", text),
    };
    [before, found, after].into_iter().collect()
}

/// `find`, `rfind`, `index` and `rindex`, with the places between which to look, all counted in characters.
fn find(text: &str, args: &[Value], name: &str) -> Result<Value, Error> {
    let (part, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
    let length = text.chars().count() as i64;
    let place = |at: i64| if at < 0 { (length + at).max(0) } else { at.min(length) } as usize;
    let (start, end) = (place(start.unwrap_or(0)), place(end.unwrap_or(length)));
    let slice: String = text.chars().skip(start).take(end.saturating_sub(start)).collect();
    let found = if name.starts_with('r') { slice.rfind(part) } else { slice.find(part) };
    match found {
        Some(at) => Ok(Value::from(start + slice[..at].chars().count())),
        None if name.ends_with("find") => Ok(Value::from(-1)),
        None => Err(Error::new(ErrorKind::InvalidOperation, "substring not found")),
    }
}

/// `zfill(width)`; `ljust`, `rjust` and `center` `(width, fill=' ')`.
fn pad(text: &str, args: &[Value], name: &str) -> Result<Value, Error> {
    let (width, fill): (i64, Option<&str>) = from_args(args)?;
    let fill = if name == "zfill" { "0" } else { fill.unwrap_or(" ") };
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(text.chars().count());
    // Bounded, since the width is the template's.
    if missing > 1 << 20 {
        return Err(Error::new(ErrorKind::InvalidOperation, "the width is too large"));
    }
    let width = usize::try_from(width).unwrap_or(0);
    let left = match name {
        "ljust" => 0,
        // Python's rounding: the odd one goes left where the width is odd.
        "center" => missing / 2 + (missing & width & 1),
        _ => missing,
    };
    if let ("zfill", Some(sign @ ('+' | '-'))) = (name, text.chars().next()) {
        return Ok(format!("{sign}{}{}", fill.repeat(left), &text[1..]).into());
    }
    Ok(format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left)).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What CPython 3.11 and Jinja2 3.1 say.
    #[test]
    fn methods_and_filters_are_pythons() {
        let mut environment = Environment::new();
        extend(&mut environment);
        for (source, expected) in [
            ("{{ 'a,b,c'.split(',', 1) }}", "['a', 'b,c']"),
            ("{{ 'a,b,c'.split(',', maxsplit=1) }}", "['a', 'b,c']"),
            ("{{ 'a,b,c'.split(sep=',') }}", "['a', 'b', 'c']"),
            ("{{ '  a  b c '.split() }}{{ '  a  b c '.split(none, 1) }}", "['a', 'b', 'c']['a', 'b c ']"),
            ("{{ 'a,b,c'.rsplit(',', 1) }}{{ ' a b  c '.rsplit(maxsplit=1) }}", "['a,b', 'c'][' a b', 'c']"),
            ("{{ ''.split() }}{{ ''.split(',') }}", "[]['']"),
            ("{{ 'k: v: w'.partition(': ')[2] }}|{{ 'k: v: w'.rpartition(': ')[0] }}|{{ 'x'.rpartition(':')[2] }}", "v: w|k: v|x"),
            ("{{ 'aéa'.find('a', 1) }}{{ 'abc'.find('x') }}{{ 'aéa'.rindex('a') }}{{ 'abc'.index('c', -1) }}", "2-122"),
            (
                "{{ '-7'.zfill(4) }}{{ 'ab'.rjust(4, '.') }}{{ 'ab'.ljust(3) }}|{{ 'a'.center(4) }}|{{ 'ab'.center(5) }}|",
                "-007..abab | a  |  ab |",
            ),
            ("{{ 'Straße'.casefold() }}{{ 'aB'.swapcase() }}{{ '12'.isdecimal() }}{{ ''.isdecimal() }}", "strasseAbTrueFalse"),
            ("{{ 'a\r\nb\n'.splitlines() }}{{ 'a\nb'.splitlines(true)[0] | length }}", "['a', 'b']2"),
            ("{{ [3, 4].index(4) }}{{ nope | length }}{{ 'é' | length }}{{ [1, 2] | count }}", "1012"),
            ("{% for k, v in {'a': 1} | items %}{{ k }}{{ v }}{% endfor %}{% for k, v in nope | items %}x{% endfor %}", "a1"),
            ("{{ 'a' is sequence }}{{ {} is sequence }}{{ [] is sequence }}{{ 1 is sequence }}", "TrueTrueTrueFalse"),
        ] {
            assert_eq!(environment.render_str(source, ()).unwrap(), expected, "{source}");
        }
        for source in
            ["{{ 'a'.index('b') }}", "{{ 'a'.split('') }}", "{{ [1].index(2) }}", "{{ 'a'.center(99999999) }}", "{{ 3 | length }}"]
        {
            assert!(environment.render_str(source, ()).is_err(), "{source}");
        }
    }
}
