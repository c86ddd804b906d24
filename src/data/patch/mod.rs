//! Unified diffs in git's form: what they say ([`Patch::parse`]), what they do ([`Patch::apply`]), and how they are written
//! ([`write_change`]).
//!
//! A line is what stands between two line feeds: a carriage return before one belongs to the line, as git has it. A patch of text is
//! text: diffs with other encodings are refused where they are read.

mod apply;
mod header;
mod parse;
mod reverse;
mod write;

pub use reverse::reverse;
pub use write::{Side, similarity, write_change};

/// A parsed diff: the files it changes, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    /// One entry per `diff --git` section.
    pub files: Vec<FileChange>,
}

/// What happens to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// The file is new.
    Added,
    /// The file is removed.
    Deleted,
    /// The file's contents or its mode change.
    Modified,
    /// The file moves, with or without changed contents.
    Renamed,
    /// The file comes from a copy of another, which stays as it is.
    Copied,
}

/// The change of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileChange {
    /// What happens to the file.
    pub kind: ChangeKind,
    /// The path before the change; none for an added file.
    pub old_path: Option<String>,
    /// The path after the change; none for a deleted file.
    pub new_path: Option<String>,
    /// The file's mode before, where the diff says (`old mode`, `deleted file mode`).
    pub old_mode: Option<u32>,
    /// The file's mode after, where the diff says (`new mode`, `new file mode`).
    pub new_mode: Option<u32>,
    /// True where the diff says only that binary contents differ, or holds them in git's binary form (which is skipped).
    pub binary: bool,
    /// The changed places, in the order of the file.
    pub hunks: Vec<Hunk>,
}

/// A changed place with the lines around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hunk {
    /// 1-based number of the first old line, or, where there is none, of the line before.
    pub old_start: usize,
    /// How many old lines the hunk spans.
    pub old_len: usize,
    /// 1-based number of the first new line, or, where there is none, of the line before.
    pub new_start: usize,
    /// How many new lines the hunk spans.
    pub new_len: usize,
    /// What stands after the second `@@`: the definition around the hunk.
    pub section: String,
    /// The lines, deleted before inserted.
    pub lines: Vec<Line>,
}

/// What a line of a hunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineKind {
    /// In both files.
    Context,
    /// In the old file only.
    Delete,
    /// In the new file only.
    Insert,
}

/// A line of a hunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Which of the two files has the line.
    pub kind: LineKind,
    /// The line without its line feed.
    pub text: String,
    /// False for a file's last line when no line feed ends it.
    pub newline: bool,
}

impl Patch {
    /// The paths that the patch modifies, deletes or renames, as named before it: what there is to be found when localising a fix.
    /// Added files and the sources of copies are not among them: the first are not there yet, the second stay as they are.
    pub fn base_paths(&self) -> impl Iterator<Item = &str> {
        self.files.iter().filter_map(FileChange::base_path)
    }

    /// How many lines are deleted and inserted.
    pub fn changed_lines(&self) -> usize {
        self.files.iter().flat_map(|f| &f.hunks).map(Hunk::changed_lines).sum()
    }
}

impl FileChange {
    /// The path of the changed file before the change, where it was there (see [`Patch::base_paths`]).
    pub fn base_path(&self) -> Option<&str> {
        match self.kind {
            ChangeKind::Modified | ChangeKind::Deleted | ChangeKind::Renamed => self.old_path.as_deref(),
            ChangeKind::Added | ChangeKind::Copied => None,
        }
    }

    /// The path after the change, or for a deleted file the one before.
    pub fn path(&self) -> &str {
        self.new_path.as_deref().or(self.old_path.as_deref()).unwrap_or_default()
    }
}

impl Hunk {
    /// How many lines are deleted and inserted.
    pub fn changed_lines(&self) -> usize {
        self.lines.iter().filter(|l| l.kind != LineKind::Context).count()
    }
}

#[cfg(test)]
mod tests;
