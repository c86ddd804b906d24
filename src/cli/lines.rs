//! Line commands: JSON lines in, JSON lines out, in order. An unreadable line gives `{"error", "line"}` and the rest goes on.

use crate::{Error, Result};
use serde::Serialize;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

/// A line without its end, and its number.
pub(crate) type Numbered = (usize, Vec<u8>);

/// The non-empty lines of a file or of stdin, with their numbers (from 1).
pub(crate) fn read(input: Option<&Path>) -> Result<impl Iterator<Item = Result<Numbered>> + Send + 'static> {
    let (name, reader): (String, Box<dyn BufRead + Send>) = match input {
        Some(path) if path.as_os_str() != "-" => {
            let file = std::fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
            (path.display().to_string(), Box::new(BufReader::new(file)))
        }
        _ => ("stdin".to_owned(), Box::new(BufReader::new(std::io::stdin()))),
    };
    let lines = reader.split(b'\n').enumerate().filter_map(move |(i, line)| match line {
        Ok(line) if line.iter().all(u8::is_ascii_whitespace) => None,
        Ok(line) => Some(Ok((i + 1, line))),
        Err(e) => Some(Err(Error::io("read", Path::new(&name), e))),
    });
    Ok(lines)
}

/// Lines that a thread of their own reads: a command that works on several at a time can tell whether the next is there already, or
/// whether whoever writes them waits for an answer first.
pub(crate) struct Arriving {
    lines: Receiver<Result<Numbered>>,
}

/// How long a line may be on its way before it counts as not there.
const SOON: Duration = Duration::from_millis(5);

impl Arriving {
    /// Starts reading. At most a few hundred lines wait to be taken.
    pub fn new(lines: impl Iterator<Item = Result<Numbered>> + Send + 'static) -> Self {
        let (sender, receiver) = mpsc::sync_channel(256);
        // Ends with the input, or when nobody takes lines any more.
        std::thread::spawn(move || lines.map(|line| sender.send(line)).take_while(|sent| sent.is_ok()).for_each(drop));
        Self { lines: receiver }
    }

    /// The next line, if it is there or comes very soon; `None` after the last. `idle` is called before a longer wait.
    pub fn next(&mut self, idle: &mut dyn FnMut() -> Result<()>) -> Result<Option<Numbered>> {
        let line = match self.lines.recv_timeout(SOON) {
            Err(RecvTimeoutError::Timeout) => {
                idle()?;
                self.lines.recv().ok()
            }
            line => line.ok(),
        };
        line.transpose()
    }
}

/// Writes JSON lines to stdout and remembers whether one was an error.
pub(crate) struct Output {
    out: std::io::StdoutLock<'static>,
    failed: usize,
}

#[derive(Serialize)]
struct Failure {
    error: String,
    line: usize,
}

impl Output {
    pub fn new() -> Self {
        Self { out: std::io::stdout().lock(), failed: 0 }
    }

    /// One line.
    pub fn write(&mut self, value: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(value).map_err(|e| Error::input(format!("cannot write JSON: {e}")))?;
        line.push(b'\n');
        self.out.write_all(&line).map_err(stdout_error)
    }

    /// A line that could not be read or used.
    pub fn fail(&mut self, line: usize, error: &Error) -> Result<()> {
        self.failed += 1;
        self.write(&Failure { error: error.to_string().replace("\n  ", "; "), line })
    }

    /// Pieces of text, shown at once.
    pub fn text(&mut self, text: &str) -> Result<()> {
        self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()).map_err(stdout_error)
    }

    /// An error if any line failed.
    pub fn finish(mut self) -> Result<()> {
        self.out.flush().map_err(stdout_error)?;
        match self.failed {
            0 => Ok(()),
            n => Err(Error::input(format!("{n} line{} could not be used; see the lines with \"error\"", if n == 1 { "" } else { "s" }))),
        }
    }
}

fn stdout_error(e: std::io::Error) -> Error {
    Error::io("write", Path::new("stdout"), e)
}

/// Whether the reader of stdout went away: no failure of ours.
pub(crate) fn is_closed_pipe(error: &Error) -> bool {
    let source = std::error::Error::source(error).and_then(|e| e.downcast_ref::<std::io::Error>());
    source.is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Parses a line as JSON, saying what is wrong and where in the line.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(line: &[u8]) -> Result<T> {
    crate::data::lines::object(line)
}
