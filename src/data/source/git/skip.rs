//! The reasons for which a commit is no task.

/// Why a commit gives no task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Skip {
    /// The first commit has no parent to be a base.
    Root,
    /// A merge has several parents and no change of its own.
    Merge,
    /// The parent is beyond the border of a shallow clone.
    Shallow,
    /// A partial clone left out a file or folder that its task would show.
    LeftOut,
    /// Written by a bot.
    Bot,
    /// The message is not UTF-8.
    MessageEncoding,
    /// Undoes another commit.
    Revert,
    /// A release or a change of version.
    Release,
    /// Neither its words nor an issue tell it to be a fix, and that is asked for.
    NotAFix,
    /// It resolves no issue of the export, and that is asked for.
    NoIssue,
    /// The message is too short to say what is wrong.
    ShortMessage,
    /// Nothing changes.
    Empty,
    /// More files change than a fix changes.
    Huge,
    /// Only lock files change.
    LockOnly,
    /// Only documentation changes.
    DocsOnly,
    /// Only tests change.
    TestsOnly,
    /// No source file changes (settings, data, generated code, submodules).
    NoSource,
    /// The changed sources are binary.
    Binary,
    /// Sources are only added: there is nothing at the base to be found.
    AddsOnly,
    /// Too many source files change.
    ManyFiles,
    /// A changed source, or a path, is not UTF-8.
    Encoding,
    /// The changed sources are too large.
    Large,
    /// No line of a source changes (a mode, a move, or line ends: carriage returns are not seen in prompts and answers).
    NoLines,
    /// Too many lines change.
    ManyLines,
    /// There is no other source file to choose from.
    NoChoice,
    /// The same change as that of a commit taken before (a cherry-pick).
    Duplicate,
    /// Nearly the change of a commit taken before ([`crate::data::near_duplicates`]).
    NearDuplicate,
}

impl Skip {
    /// All reasons, in the order in which they are asked.
    pub const ALL: [Self; 27] = [
        Self::Root,
        Self::Merge,
        Self::Shallow,
        Self::LeftOut,
        Self::Bot,
        Self::MessageEncoding,
        Self::Revert,
        Self::Release,
        Self::NotAFix,
        Self::NoIssue,
        Self::ShortMessage,
        Self::Empty,
        Self::Huge,
        Self::LockOnly,
        Self::DocsOnly,
        Self::TestsOnly,
        Self::NoSource,
        Self::Binary,
        Self::AddsOnly,
        Self::ManyFiles,
        Self::Encoding,
        Self::Large,
        Self::NoLines,
        Self::ManyLines,
        Self::NoChoice,
        Self::Duplicate,
        Self::NearDuplicate,
    ];

    /// The reason's name in JSON, and in words.
    pub fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::Root => ("root", "has no parent"),
            Self::Merge => ("merge", "is a merge"),
            Self::Shallow => ("shallow", "has its parent beyond the border of the shallow clone"),
            Self::LeftOut => ("left_out", "needs files that the partial clone does not have"),
            Self::Bot => ("bot", "was written by a bot"),
            Self::MessageEncoding => ("message_encoding", "has a message that is not UTF-8"),
            Self::Revert => ("revert", "reverts another commit"),
            Self::Release => ("release", "makes a release or changes the version"),
            Self::NotAFix => ("not_a_fix", "does not say that it fixes something (--require fix)"),
            Self::NoIssue => ("no_issue", "resolves no issue of --issues (--require issue)"),
            Self::ShortMessage => ("short_message", "has too short a message (--min-message)"),
            Self::Empty => ("empty", "changes nothing"),
            Self::Huge => ("huge", "changes hundreds of files"),
            Self::LockOnly => ("lock_only", "changes lock files only"),
            Self::DocsOnly => ("docs_only", "changes documentation only"),
            Self::TestsOnly => ("tests_only", "changes tests only"),
            Self::NoSource => ("no_source", "changes no source file"),
            Self::Binary => ("binary", "changes binary files"),
            Self::AddsOnly => ("adds_only", "adds files only: nothing at the base to be found"),
            Self::ManyFiles => ("many_files", "changes too many source files (--max-files)"),
            Self::Encoding => ("encoding", "changes a file that is not UTF-8"),
            Self::Large => ("large", "changes files that are too large (--max-bytes)"),
            Self::NoLines => ("no_lines", "changes no line of a source file"),
            Self::ManyLines => ("many_lines", "changes too many lines (--max-lines)"),
            Self::NoChoice => ("no_choice", "leaves no other source file to choose from"),
            Self::Duplicate => ("duplicate", "makes the change of another commit again"),
            Self::NearDuplicate => ("near_duplicate", "makes nearly the change of another commit (--near-duplicates)"),
        }
    }
}
