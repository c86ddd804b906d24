//! From TOML and `--set` to checked values, each error with its file, line and field.

use super::keys::{self, Key, Kind, Scope};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// A checked value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A text, a choice, a model or a path.
    Text(String),
    /// A list of texts or paths.
    Texts(Vec<String>),
    /// True or false.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A number.
    Number(f64),
    /// Two numbers.
    Pair(f64, f64),
}

impl Value {
    /// The value as TOML.
    pub fn to_toml(&self) -> String {
        let quoted = |s: &String| toml::Value::String(s.clone()).to_string();
        match self {
            Value::Text(s) => quoted(s),
            Value::Texts(all) => format!("[{}]", all.iter().map(quoted).collect::<Vec<_>>().join(", ")),
            Value::Bool(b) => b.to_string(),
            Value::Integer(i) => i.to_string(),
            Value::Number(x) => format!("{x:?}"),
            Value::Pair(a, b) => format!("[{a:?}, {b:?}]"),
        }
    }
}

/// Values by the name of their setting.
pub type Values = BTreeMap<&'static str, Value>;

/// What a configuration says: the top level, and its stages' overrides. Nothing else is filled in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Given {
    /// The top level.
    pub top: Values,
    /// `[[stage]]` tables in order.
    pub stages: Vec<Values>,
}

/// Where a value comes from, for errors.
#[derive(Clone, Copy)]
enum Origin<'a> {
    File { path: &'a Path, text: &'a str },
    Flag,
}

impl Origin<'_> {
    fn error(&self, message: String, offset: usize) -> Error {
        match self {
            Origin::File { path, text } => Error::input(message).at_line(path, 1 + text[..offset.min(text.len())].matches('\n').count()),
            Origin::Flag => Error::usage(message).at("--set"),
        }
    }
}

/// Reads the text of a configuration file; `path` serves the errors and, by its folder, relative paths.
pub fn parse_file(text: &str, path: &Path) -> Result<Given> {
    let origin = Origin::File { path, text };
    let root = DeTable::parse(text).map_err(|e| origin.error(format!("not TOML: {}", e.message()), e.span().map_or(0, |s| s.start)))?;
    let base = path.parent().unwrap_or(Path::new("")).to_path_buf();
    let mut given = Given::default();
    let mut top = Vec::new();
    for (key, value) in root.get_ref() {
        if key.get_ref() != "stage" {
            flatten("", key.get_ref(), key.span().start, value, &mut top);
            continue;
        }
        let tables = match value.get_ref() {
            DeValue::Array(tables) => tables.iter().collect::<Vec<_>>(),
            _ => return Err(origin.error("stage: write each stage as a table of its own: [[stage]]".into(), key.span().start)),
        };
        for table in tables {
            let DeValue::Table(table) = table.get_ref() else {
                return Err(origin.error("stage: expected tables: [[stage]]".into(), key.span().start));
            };
            let mut leaves = Vec::new();
            for (key, value) in table {
                flatten("", key.get_ref(), key.span().start, value, &mut leaves);
            }
            given.stages.push(check_all(&leaves, &base, &origin, true)?);
        }
    }
    given.top = check_all(&top, &base, &origin, false)?;
    Ok(given)
}

/// Applies one `--set key=value` (`stage.N.key=value` for the stage N, from 1); relative paths are relative to `base`.
pub fn apply_set(given: &mut Given, set: &str, base: &Path) -> Result<()> {
    let Some((name, text)) = set.split_once('=') else {
        return Err(Error::usage(format!("expected key=value, found `{set}`")).at("--set"));
    };
    let (name, text) = (name.trim(), text.trim());
    let (place, name, in_stage) = match name.strip_prefix("stage.").and_then(|rest| rest.split_once('.')) {
        Some((number, name)) => {
            let count = given.stages.len();
            let index = number.parse::<usize>().ok().and_then(|n| n.checked_sub(1)).filter(|&i| i < count);
            let Some(index) = index else {
                let hint = "the stages are the [[stage]] tables, from 1; a setting of the whole run has no `stage.N.` before it";
                return Err(Error::usage(format!("there is no stage {number}: the configuration has {count}")).at("--set").hint(hint));
            };
            (Some(index), name, true)
        }
        None => (None, name, false),
    };
    let key = known(name, in_stage, &Origin::Flag, 0)?;
    // Quotes may be left out: what is not TOML of the right kind is taken as text, and as a list of texts where one is wanted.
    let parsed = DeValue::parse(text).ok().and_then(|v| check(key, v.get_ref(), base));
    let value = parsed.or_else(|| match key.kind {
        Kind::Text | Kind::Model | Kind::Path | Kind::Choice(_) => check(key, &DeValue::String(text.into()), base),
        Kind::Paths | Kind::Texts => {
            let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
            let items = inner.split(',').map(|t| t.trim().trim_matches('"')).filter(|t| !t.is_empty());
            Some(Value::Texts(items.map(|t| resolve(key.kind, t, base)).collect()))
        }
        Kind::Choices(_) => {
            let items = text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(|t| format!("\"{t}\"")).collect::<Vec<_>>();
            DeValue::parse(&format!("[{}]", items.join(", "))).ok().and_then(|v| check(key, v.get_ref(), base))
        }
        _ => None,
    });
    let value = value.ok_or_else(|| Error::usage(format!("expected {}, found `{text}`", key.kind.expected())).at(name).at("--set"))?;
    if !in_stage && !given.stages.is_empty() && given.stages.iter().all(|stage| stage.contains_key(key.name)) {
        let message = format!("every stage sets `{name}` itself, so this would change nothing");
        return Err(Error::usage(message).at("--set").hint(format!("for the first stage: --set stage.1.{name}={text}")));
    }
    let values = match place {
        Some(stage) => &mut given.stages[stage],
        None => &mut given.top,
    };
    values.insert(key.name, value);
    Ok(())
}

type Leaf<'a, 'i> = (String, usize, &'a DeValue<'i>);

fn flatten<'a, 'i>(prefix: &str, key: &str, at: usize, value: &'a toml::Spanned<DeValue<'i>>, out: &mut Vec<Leaf<'a, 'i>>) {
    let name = if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") };
    match value.get_ref() {
        DeValue::Table(table) => {
            for (inner, value) in table {
                flatten(&name, inner.get_ref(), inner.span().start, value, out);
            }
        }
        leaf => out.push((name, at, leaf)),
    }
}

fn check_all(leaves: &[Leaf<'_, '_>], base: &Path, origin: &Origin<'_>, in_stage: bool) -> Result<Values> {
    let mut values = Values::new();
    for (name, at, value) in leaves {
        let key = known(name, in_stage, origin, *at)?;
        let checked = check(key, value, base)
            .ok_or_else(|| origin.error(format!("{name}: expected {}, found {}", key.kind.expected(), describe(value)), *at))?;
        values.insert(key.name, checked);
    }
    Ok(values)
}

fn known(name: &str, in_stage: bool, origin: &Origin<'_>, at: usize) -> Result<&'static Key> {
    let Some(key) = keys::find(name) else {
        if matches!(name.split('.').next(), Some("stages" | "stage")) {
            return Err(origin.error(format!("unknown setting `{name}`"), at).hint("each stage is a table of its own: [[stage]]"));
        }
        let nearest = keys::nearest(name);
        return Err(origin
            .error(format!("unknown setting `{name}`"), at)
            .hint(format!("the nearest known one is `{nearest}`; docs/configuration.md has them all")));
    };
    if in_stage && key.scope == Scope::Run {
        return Err(origin
            .error(format!("`{name}` holds for the whole run, not for a stage"), at)
            .hint("move it above the first [[stage]]"));
    }
    Ok(key)
}

/// What was found in the place of a value, for an error.
fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(s) => format!("the text \"{s}\""),
        DeValue::Integer(i) => format!("{i}"),
        DeValue::Float(x) => format!("{x}"),
        DeValue::Boolean(b) => b.to_string(),
        DeValue::Datetime(d) => format!("the date {d}"),
        DeValue::Array(_) => "a list".into(),
        DeValue::Table(_) => "a table".into(),
    }
}

/// The value if it is of the setting's kind.
fn check(key: &Key, value: &DeValue<'_>, base: &Path) -> Option<Value> {
    let unit = |x: f64| (0.0..1.0).contains(&x);
    match (key.kind, value) {
        (Kind::Text, DeValue::String(s)) => Some(Value::Text(s.to_string())),
        (Kind::Model | Kind::Path, DeValue::String(s)) => Some(Value::Text(resolve(key.kind, s, base))),
        (Kind::Choice(of), DeValue::String(s)) => of.contains(&&**s).then(|| Value::Text(s.to_string())),
        (Kind::Paths, DeValue::String(s)) => Some(Value::Texts(vec![resolve(key.kind, s, base)])),
        (Kind::Paths | Kind::Texts, DeValue::Array(items)) => {
            let texts = items.iter().map(|i| i.get_ref().as_str().map(|s| resolve(key.kind, s, base)));
            texts.collect::<Option<Vec<_>>>().map(Value::Texts)
        }
        (Kind::Choices(of), DeValue::Array(items)) => {
            let texts =
                items.iter().map(|i| i.get_ref().as_str().filter(|s| of.contains(s)).map(str::to_owned)).collect::<Option<Vec<_>>>()?;
            let once = texts.iter().enumerate().all(|(i, t)| !texts[..i].contains(t));
            once.then_some(Value::Texts(texts))
        }
        (Kind::Bool, DeValue::Boolean(b)) => Some(Value::Bool(*b)),
        (Kind::Integer(min), DeValue::Integer(_)) => integer(value).filter(|i| *i >= min).map(Value::Integer),
        (Kind::Number(min, max), _) => number(value).filter(|x| (min..=max).contains(x)).map(Value::Number),
        (Kind::Betas, DeValue::Array(_)) => pair(value).filter(|&(a, b)| unit(a) && unit(b)).map(|(a, b)| Value::Pair(a, b)),
        (Kind::Clip, _) => {
            let (low, high) = number(value).map(|x| (x, x)).or_else(|| pair(value))?;
            ((0.0..=1.0).contains(&low) && (0.0..=f64::MAX).contains(&high)).then_some(Value::Pair(low, high))
        }
        _ => None,
    }
}

fn integer(value: &DeValue<'_>) -> Option<i64> {
    let integer = value.as_integer()?;
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

fn number(value: &DeValue<'_>) -> Option<f64> {
    match value {
        DeValue::Float(x) => x.as_str().parse().ok().filter(|x: &f64| x.is_finite()),
        _ => integer(value).map(|i| i as f64),
    }
}

fn pair(value: &DeValue<'_>) -> Option<(f64, f64)> {
    match value.as_array()?.iter().map(|v| number(v.get_ref())).collect::<Option<Vec<_>>>()?[..] {
        [a, b] => Some((a, b)),
        _ => None,
    }
}

/// A path made absolute against the configuration's folder; a model's hub id stays as it is.
fn resolve(kind: Kind, text: &str, base: &Path) -> String {
    let path_like = match kind {
        Kind::Path | Kind::Paths => !text.is_empty(),
        Kind::Model => base.join(text).exists() || !looks_like_hub_id(text),
        _ => false,
    };
    if !path_like {
        return text.to_owned();
    }
    let joined: PathBuf = base.join(text);
    std::path::absolute(&joined).unwrap_or(joined).display().to_string()
}

/// `owner/name`, and not a path that happens to have one slash.
fn looks_like_hub_id(text: &str) -> bool {
    match text.split('/').collect::<Vec<_>>()[..] {
        [owner, name] => !owner.is_empty() && !owner.starts_with('.') && !name.is_empty() && !name.ends_with(".gguf"),
        _ => false,
    }
}
