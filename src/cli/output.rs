//! Writing to stdout, and small tables.

use std::io::{self, ErrorKind, Write};
use std::path::Path;

use crate::{Error, Result};

/// A line on stderr. Unlike `eprintln!` it does not panic where nobody reads it any more (`2>&1 | head`): a run must not end for that.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($arg)*);
    }};
}
pub(crate) use say;

/// Writes to stdout through a buffer. A reader that goes away (`| head`) ends the output without being an error.
pub(super) fn to_stdout(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::io("write", Path::new("stdout"), e)),
        _ => Ok(()),
    }
}

/// Prints a JSON value on a line of its own.
pub(super) fn json_line(value: &serde_json::Value) -> Result<()> {
    to_stdout(|out| writeln!(out, "{value}"))
}

/// `1 step`, `2 steps`.
pub(super) fn plural(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Rows in columns: the first aligned to the left, the others to the right.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(c, (cell, &w))| if c == 0 { format!("{cell:<w$}") } else { format!("{cell:>w$}") })
            .collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn tables_are_aligned() {
        let rows = vec![vec!["a".to_owned(), "10".to_owned()], vec!["bcd".to_owned(), "5".to_owned()]];
        assert_eq!(super::table(&rows), "a    10\nbcd   5\n");
    }
}
