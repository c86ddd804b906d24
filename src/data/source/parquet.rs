//! Rows of a parquet file as JSON objects.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// Hands every row to `take`, with its number counted from 1: columns are the object's fields, structs are objects, lists are lists.
/// Snappy, zstd and no compression are read.
///
/// # Errors
///
/// A damaged file, a column type without a JSON form, or whatever `take` refuses.
pub(super) fn rows(path: &Path, mut take: impl FnMut(Value, usize) -> Result<()>) -> Result<()> {
    let damaged = |what: &str| {
        Error::input(format!("cannot read it as parquet: {what}"))
            .at_file(path)
            .hint("is the download complete? compressions known: none, snappy, zstd")
    };
    let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
    // The library panics on some damaged files; for us that is bad input like any other.
    catch_unwind(AssertUnwindSafe(|| {
        let reader = SerializedFileReader::new(file).map_err(|e| damaged(&e.to_string()))?;
        let rows = reader.get_row_iter(None).map_err(|e| damaged(&e.to_string()))?;
        for (i, row) in rows.enumerate() {
            let row = row.map_err(|e| damaged(&format!("row {}: {e}", i + 1)))?;
            take(object(row).map_err(|e| e.at(format_args!("{}, row {}", path.display(), i + 1)))?, i + 1)?;
        }
        Ok(())
    }))
    .unwrap_or_else(|_| Err(damaged("its contents are damaged")))
}

fn object(row: Row) -> Result<Value> {
    let field = |(name, field): (String, Field)| {
        let value = value(&field).map_err(|e| e.at(format_args!("field `{name}`")))?;
        Ok((name, value))
    };
    row.into_columns().into_iter().map(field).collect::<Result<Map<_, _>>>().map(Value::Object)
}

fn value(field: &Field) -> Result<Value> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(b) => Value::from(*b),
        Field::Byte(n) => Value::from(*n),
        Field::Short(n) => Value::from(*n),
        Field::Int(n) | Field::Date(n) | Field::TimeMillis(n) => Value::from(*n),
        Field::Long(n) | Field::TimeMicros(n) => Value::from(*n),
        Field::UByte(n) => Value::from(*n),
        Field::UShort(n) => Value::from(*n),
        Field::UInt(n) => Value::from(*n),
        Field::ULong(n) => Value::from(*n),
        Field::Float16(x) => Value::from(x.to_f32()),
        Field::Float(x) => Value::from(*x),
        Field::Double(x) => Value::from(*x),
        Field::Str(s) => Value::from(s.as_str()),
        Field::TimestampMillis(n) => time(*n)?,
        Field::TimestampMicros(n) => time(n.div_euclid(1000))?,
        Field::Group(row) => object(row.clone())?,
        Field::ListInternal(list) => Value::Array(list.elements().iter().map(value).collect::<Result<_>>()?),
        Field::MapInternal(map) => {
            let mut out = Map::new();
            for (key, field) in map.entries() {
                let Value::String(key) = value(key)? else { return Err(Error::input("expected a map whose keys are texts")) };
                out.insert(key, value(field)?);
            }
            Value::Object(out)
        }
        Field::Decimal(_) | Field::Bytes(_) => {
            return Err(Error::input("expected text, numbers, lists or structs, found bytes or a decimal"));
        }
    })
}

/// Milliseconds since 1970 in RFC 3339.
fn time(millis: i64) -> Result<Value> {
    let time = chrono::DateTime::from_timestamp_millis(millis).ok_or_else(|| Error::input(format!("{millis} is no time")))?;
    Ok(Value::from(time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)))
}
