//! Writing to stdout, and small tables.

use std::io::{self, ErrorKind, Write};
use std::path::Path;

use terminal_size::terminal_size_of;

use crate::columns::columns;
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

/// Rows in columns for stdout: as wide as they are in a pipe or a file, and no wider than a terminal.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    columns(rows, width())
}

/// The same for stderr.
pub(super) fn table_for_stderr(rows: &[Vec<String>]) -> String {
    columns(rows, terminal_size_of(io::stderr()).map(|(width, _)| usize::from(width.0)))
}

/// How many characters a line of the terminal holds that stdout is; none where it is no terminal.
pub(super) fn width() -> Option<usize> {
    terminal_size_of(io::stdout()).map(|(width, _)| usize::from(width.0))
}
