//! What the Python package `unidiff` (1.0) makes of a patch's text, as far as SWE-RL's reward for patches looks at it: which files, and each
//! hunk's text as `str(hunk)` gives it. (Patches that are to be applied are read by [`super::patch`], which is stricter.)
//!
//! One difference: only the digits 0 to 9 count as digits, where Python takes those of every script.

use std::sync::LazyLock;

use regex::bytes::{Captures, Regex};

const DEV_NULL: &[u8] = b"/dev/null";

/// A file of a patch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PatchedFile {
    /// The file before, with its prefix (`a/`).
    pub source: Vec<u8>,
    /// The file after, with its prefix (`b/`).
    pub target: Vec<u8>,
    /// Whether the patch says only that binary contents differ.
    pub binary: bool,
    /// `str(hunk)` of each hunk.
    pub hunks: Vec<Vec<u8>>,
}

impl PatchedFile {
    /// `is_rename`: whether the names differ behind their first two characters.
    pub fn is_rename(&self) -> bool {
        self.source != DEV_NULL && self.target != DEV_NULL && after_two(&self.source) != after_two(&self.target)
    }

    /// `path`: the file's name without prefix, that after the change for a new or renamed file.
    pub fn path(&self) -> Vec<u8> {
        let renamed = self.is_rename() && self.target != DEV_NULL;
        let name = if self.source == DEV_NULL || renamed { &self.target } else { &self.source };
        let quoted = name.starts_with(b"\"") && name.ends_with(b"\"");
        let bare = if quoted { name.get(1..name.len() - 1).unwrap_or_default() } else { name };
        let bare = match bare {
            [b'a' | b'b' | b'c' | b'i' | b'o' | b'w' | b'1' | b'2', b'/', rest @ ..] => rest,
            _ => bare,
        };
        if quoted { [b"\"", bare, b"\""].concat() } else { bare.to_vec() }
    }
}

/// A text without its first two characters.
fn after_two(text: &[u8]) -> &[u8] {
    let starts = text.iter().enumerate().filter(|(_, b)| **b & 0xC0 != 0x80);
    starts.map(|(i, _)| i).nth(2).map_or(&[], |at| &text[at..])
}

/// The lines that the parser knows, as the package's patterns have them.
struct Patterns {
    git_headers: [Regex; 3],
    new_file: Regex,
    deleted_file: Regex,
    source: Regex,
    target: Regex,
    hunk: Regex,
    binary: Regex,
}

static PATTERNS: LazyLock<Patterns> = LazyLock::new(|| {
    let new = |pattern: &str| Regex::new(&format!("(?-u){pattern}")).expect("a constant pattern, which the tests compile");
    let time = r"(?:\t[\s\x1c-\x1f0-9:+-]+)?";
    Patterns {
        git_headers: [
            new(r#"^diff --git ("?a/[^\t\n]+"?) ("?b/[^\t\n]+"?)"#),
            new(r"^diff --git ([^\n]*://[^\t\n]+) ([^\n]*://[^\t\n]+)"),
            new(r"^diff --git ([^\t\n]+) ([^\t\n]+)"),
        ],
        new_file: new(r"^new file mode [0-9]+\n?$"),
        deleted_file: new(r"^deleted file mode [0-9]+\n?$"),
        source: new(r"^--- ([^\t\n]*)"),
        target: new(r"^\+\+\+ ([^\t\n]*)"),
        hunk: new(r"^@@ -([0-9]+)(?:,([0-9]+))? \+([0-9]+)(?:,([0-9]+))? @@ ?([^\n]*)"),
        binary: new(&format!(r"^Binary files? ([^\t]+?){time}(?: and [^\t]+?{time})? (?:differ|has changed)")),
    }
});

/// The files of a patch, or why it cannot be parsed.
pub fn parse(patch: &[u8]) -> Result<Vec<PatchedFile>, String> {
    let mut parser = Parser::default();
    let mut lines = patch.split_inclusive(|&b| b == b'\n');
    while let Some(line) = lines.next() {
        parser.line(line, &mut lines)?;
    }
    Ok(parser.files)
}

/// Where the parser stands.
#[derive(Default)]
struct Parser {
    files: Vec<PatchedFile>,
    /// Whether the last of `files` is the one that lines belong to.
    in_file: bool,
    /// Whether lines that are nothing else belong to a header.
    in_info: bool,
    /// What a `---` line named.
    source: Option<Vec<u8>>,
}

impl Parser {
    fn line<'a>(&mut self, line: &'a [u8], rest: &mut impl Iterator<Item = &'a [u8]>) -> Result<(), String> {
        let p = &*PATTERNS;
        if let Some(header) = p.git_headers.iter().find_map(|r| r.captures(line)) {
            self.source = Some(header[1].to_vec());
            self.open(PatchedFile { source: header[1].to_vec(), target: header[2].to_vec(), ..PatchedFile::default() });
            self.in_info = true;
        } else if p.new_file.is_match(line) {
            self.header_file("Unexpected new file")?.source = DEV_NULL.to_vec();
        } else if p.deleted_file.is_match(line) {
            self.header_file("Unexpected deleted file")?.target = DEV_NULL.to_vec();
        } else if let Some(name) = p.source.captures(line) {
            self.source = Some(name[1].to_vec());
            self.in_file &= self.in_info;
        } else if let Some(name) = p.target.captures(line) {
            self.target_line(&name[1])?;
        } else if let Some(header) = p.hunk.captures(line) {
            self.in_info = false;
            let file = self.file().ok_or("Unexpected hunk")?;
            file.hunks.push(hunk(&header, rest)?);
        } else if line.starts_with(b"\\ No newline at end of file") {
            let hunk = self.file().and_then(|f| f.hunks.last_mut()).ok_or("Unexpected marker")?;
            hunk.extend_from_slice(b"\\ No newline at end of file\n");
        } else if let (b"\n", Some(hunk)) = (line, self.file().and_then(|f| f.hunks.last_mut())) {
            hunk.push(b'\n');
        } else {
            self.info_line(line)?;
        }
        Ok(())
    }

    fn open(&mut self, file: PatchedFile) {
        self.files.push(file);
        self.in_file = true;
    }

    /// The file that lines belong to.
    fn file(&mut self) -> Option<&mut PatchedFile> {
        self.files.last_mut().filter(|_| self.in_file)
    }

    /// The file whose git header is being read.
    fn header_file(&mut self, error: &str) -> Result<&mut PatchedFile, String> {
        let in_info = self.in_info;
        self.file().filter(|_| in_info).ok_or_else(|| error.to_owned())
    }

    /// `+++ name`.
    fn target_line(&mut self, name: &[u8]) -> Result<(), String> {
        match self.file() {
            Some(file) if file.target == name => {}
            Some(_) => return Err("Target without source".into()),
            None => {
                let source = self.source.take().ok_or("Target without source")?;
                self.open(PatchedFile { source, target: name.to_vec(), ..PatchedFile::default() });
                self.in_info = false;
            }
        }
        Ok(())
    }

    /// A line that is nothing else.
    fn info_line(&mut self, line: &[u8]) -> Result<(), String> {
        if !self.in_info {
            (self.in_file, self.in_info) = (false, true);
        }
        if let Some(binary) = PATTERNS.binary.captures(line) {
            self.source = Some(binary[1].to_vec());
            match self.file() {
                Some(file) => file.binary = true,
                None => self.open(PatchedFile { binary: true, ..PatchedFile::default() }),
            }
            (self.in_file, self.in_info) = (false, false);
        } else if line == b"GIT binary patch\n" {
            self.file().ok_or("Unexpected binary patch marker")?.binary = true;
            (self.in_file, self.in_info) = (false, false);
        }
        Ok(())
    }
}

/// Reads the lines of a hunk, as many as its header says, and gives its text.
fn hunk<'a>(header: &Captures<'_>, lines: &mut impl Iterator<Item = &'a [u8]>) -> Result<Vec<u8>, String> {
    let number = |i: usize| number(header.get(i).map_or(b"1", |m| m.as_bytes()));
    let (source_start, source_len) = (number(1)?, number(2)?);
    let (target_start, target_len) = (number(3)?, number(4)?);
    let mut text = format!("@@ -{source_start},{source_len} +{target_start},{target_len} @@").into_bytes();
    if !header[5].is_empty() {
        text.push(b' ');
        text.extend_from_slice(&header[5]);
    }
    text.push(b'\n');
    // A length beyond any text is never reached.
    let length = |digits: &str| digits.parse().unwrap_or(u64::MAX);
    let (source_len, target_len) = (length(&source_len), length(&target_len));
    let (mut source, mut target) = (0u64, 0u64);
    for line in lines {
        let (kind, value) = match line {
            [kind @ (b'-' | b' ' | b'+' | b'\\'), value @ ..] => (*kind, value),
            [b'\r' | b'\n', b'\r' | b'\n', ..] => (b' ', &line[..2]),
            [b'\r' | b'\n', ..] => (b' ', &line[..1]),
            _ => return Err("Hunk diff line expected".into()),
        };
        source += u64::from(matches!(kind, b'-' | b' '));
        target += u64::from(matches!(kind, b'+' | b' '));
        if source > source_len || target > target_len {
            return Err("Hunk is longer than expected".into());
        }
        text.push(kind);
        text.extend_from_slice(value);
        if source == source_len && target == target_len {
            break;
        }
    }
    if source < source_len || target < target_len {
        return Err("Hunk is shorter than expected".into());
    }
    Ok(text)
}

/// A number as Python prints it after reading it. (It reads at most 4300 digits.)
fn number(digits: &[u8]) -> Result<String, String> {
    if digits.len() > 4300 {
        return Err("Exceeds the limit for integer string conversion".into());
    }
    let text = String::from_utf8_lossy(digits);
    let short = text.trim_start_matches('0');
    Ok(if short.is_empty() { "0".into() } else { short.into() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn files_hunks_and_names() {
        let patch = "diff --git a/x.py b/y.py\nsimilarity index 90%\nrename from x.py\nrename to y.py\n--- a/x.py\n+++ b/y.py\n\
                     @@ -1 +01,2 @@ def f():\n-a\n+b\n+c\n\\ No newline at end of file\n";
        let files = parse(patch.as_bytes()).unwrap();
        assert_eq!(files.len(), 1);
        assert!(files[0].is_rename());
        assert_eq!(files[0].path(), b"y.py");
        assert_eq!(files[0].hunks, [b"@@ -1,1 +1,2 @@ def f():\n-a\n+b\n+c\n\\ No newline at end of file\n".to_vec()]);
        let added = parse(b"--- /dev/null\n+++ b/n.py\n@@ -0,0 +1 @@\n+x\n").unwrap();
        assert_eq!((added[0].path(), added[0].is_rename()), (b"n.py".to_vec(), false));
        assert!(parse(b"Binary files a/x and b/x differ\n").unwrap()[0].binary);
        assert_eq!(parse(b"just text\n").unwrap(), []);
    }

    #[test]
    fn malformed_hunks_are_errors() {
        for (patch, error) in [
            ("@@ -1 +1 @@\n-a\n+b\n", "Unexpected hunk"),
            ("--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n", "shorter"),
            ("--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n-b\n", "longer"),
            ("--- a/x\n+++ b/x\n@@ -1 +1 @@\nfoo\n", "line expected"),
            ("+++ b/x\n", "Target without source"),
            ("\\ No newline at end of file\n", "Unexpected marker"),
        ] {
            assert!(parse(patch.as_bytes()).unwrap_err().contains(error), "{patch}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "(diff --git a/x b/x\n|--- a/x\n|\\+\\+\\+ b/x\n|@@ -1,2 \\+1 @@\n| x\n|\\+x\n|-x\n|\n|\\\\ No newline at end of file\n|é\n){0,30}") {
            if let Ok(files) = parse(text.as_bytes()) {
                files.iter().for_each(|f| drop(f.path()));
            }
        }
    }
}
