//! The one error type of the program.
//!
//! An error says where it happened (a file, a line of it, a field), what was wrong and what was expected, and, where there is something
//! to be done, what to do. It prints as `place: message` with the hint on a line of its own.

use std::fmt;
use std::path::Path;

/// What an error means for the caller: which exit status, and whether trying again could help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Something the user gave (a file, a setting, a prompt) cannot be used. Exit status 1.
    Input,
    /// The system refused: a full disk, a missing permission. Exit status 1.
    Io,
    /// No such device, or a device that failed. Exit status 1.
    Device,
    /// The command line itself is wrong. Exit status 2.
    Usage,
    /// Ctrl-C. Exit status 130.
    Interrupted,
}

/// An error with its place and a hint.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    place: Option<String>,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of the given kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, place: None, message: message.into(), hint: None, source: None }
    }

    /// Input that cannot be used.
    pub fn input(message: impl Into<String>) -> Self {
        Self::new(Kind::Input, message)
    }

    /// A wrong command line.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// A device that is missing or failed.
    pub fn device(message: impl Into<String>) -> Self {
        Self::new(Kind::Device, message)
    }

    /// The user pressed Ctrl-C.
    pub fn interrupted() -> Self {
        Self::new(Kind::Interrupted, "interrupted")
    }

    /// The operating system's error about `path` while doing `what` ("read", "create", ...).
    pub fn io(what: &str, path: &Path, source: std::io::Error) -> Self {
        let hint = match source.kind() {
            std::io::ErrorKind::StorageFull => Some("the disk is full: free some space; nothing already written was changed".to_owned()),
            std::io::ErrorKind::FileTooLarge | std::io::ErrorKind::QuotaExceeded => {
                Some("a limit on files or on this user's space is reached; nothing already written was changed".to_owned())
            }
            std::io::ErrorKind::UnexpectedEof => Some("the file is cut off: make, copy or download it again".to_owned()),
            std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                Some(format!("this user may not {what} it: choose another place, or change its rights"))
            }
            _ => None,
        };
        Self {
            kind: Kind::Io,
            place: Some(path.display().to_string()),
            message: format!("cannot {what}: {source}"),
            hint,
            source: Some(Box::new(source)),
        }
    }

    /// Says which file the error is about (an outer place is put before an inner one: `file: field`).
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.place = Some(match self.place.take() {
            Some(inner) => format!("{place}: {inner}"),
            None => place.to_string(),
        });
        self
    }

    /// Says which file the error is about.
    pub fn at_file(self, path: &Path) -> Self {
        self.at(path.display())
    }

    /// Says which line (1-based) of which file the error is about.
    pub fn at_line(self, path: &Path, line: usize) -> Self {
        self.at(format_args!("{}:{line}", path.display()))
    }

    /// What the user can do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The error that caused this one.
    pub fn caused_by(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// What kind of error this is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The exit status that the command line's contract gives this error.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Input | Kind::Io | Kind::Device => 1,
            Kind::Usage => 2,
            Kind::Interrupted => 130,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, "\n  {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|e| &**e as _)
    }
}

/// What serde_json found wrong with one line of JSON: its own words say `at line 1 column N`, beside a line number that is another.
pub(crate) fn json_message(e: &serde_json::Error) -> String {
    let text = e.to_string();
    let reason = text.rfind(" at line ").map_or(text.as_str(), |end| &text[..end]);
    if e.column() > 0 { format!("{reason} at column {}", e.column()) } else { reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_place_message_and_hint() {
        let e = Error::input("expected a number").at("lora.rank").at_line(Path::new("run.toml"), 3).hint("write rank = 8");
        assert_eq!(e.to_string(), "run.toml:3: lora.rank: expected a number\n  write rank = 8");
        assert_eq!(e.exit_code(), 1);
        assert_eq!(Error::usage("x").exit_code(), 2);
        assert_eq!(Error::interrupted().exit_code(), 130);
    }
}
