//! Task files of the SWE-bench family: one JSON object a line or one JSON list, gzipped or not, or a parquet file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::Path;

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use serde_json::Value;

use crate::data::Task;
use crate::error::json_message;
use crate::{Error, Result};

/// Reads the tasks of a file: JSON lines, one JSON list, one JSON object over several lines, or parquet; gzip and parquet are known by their
/// first bytes, whatever the name.
///
/// # Errors
///
/// A line that is no task (named as `file:line`), two tasks of one name (both lines named), a file without any task.
pub fn read(path: &Path) -> Result<Vec<Task>> {
    read_with(path, |value| Task::from_json(value).map(Some))
}

/// As [`read`], with `convert` making a task of each JSON object, or leaving it out: for formats that differ from SWE-bench's.
pub fn read_with(path: &Path, convert: impl FnMut(Value) -> Result<Option<Task>>) -> Result<Vec<Task>> {
    let mut input = open(path)?;
    let failed = |e| Error::io("read", path, e);
    let mut tasks = Collector { path, convert, lines: HashMap::new(), tasks: Vec::new() };
    if input.fill_buf().map_err(failed)?.starts_with(b"PAR1") {
        read_parquet(path, &mut |value, row| tasks.add(value, row, "row"))?;
        return tasks.finish();
    }
    if input.fill_buf().map_err(failed)?.starts_with(b"\xef\xbb\xbf") {
        input.consume(3);
    }
    let is_list = input.fill_buf().map_err(failed)?.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'[');
    if is_list {
        let list: Vec<Value> = serde_json::from_reader(input)
            .map_err(|e| Error::input(format!("expected a JSON list of tasks: {e}")).at_line(path, e.line()))?;
        for (i, value) in list.into_iter().enumerate() {
            tasks.add(value, i + 1, "entry")?;
        }
    } else {
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            if input.read_until(b'\n', &mut line).map_err(failed)? == 0 {
                break;
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            if line.trim_ascii() == b"{" && tasks.tasks.is_empty() {
                // One object over many lines, as SWE-smith's tools write an instance.
                let object = serde_json::from_reader(line.as_slice().chain(input));
                let object =
                    object.map_err(|e| Error::input(format!("not JSON: {e}")).at_line(path, number + e.line().saturating_sub(1)))?;
                tasks.add(object, number, "line")?;
                break;
            }
            let value = serde_json::from_slice(line.trim_ascii_end()).map_err(|e| {
                let hint = "a task file holds one JSON object a line (see `data import --help`)";
                Error::input(format!("not JSON: {}", json_message(&e))).at_line(path, number).hint(hint)
            })?;
            tasks.add(value, number, "line")?;
        }
    }
    tasks.finish()
}

/// Hands the rows of a parquet file to `take`, with their numbers.
fn read_parquet(path: &Path, take: &mut dyn FnMut(Value, usize) -> Result<()>) -> Result<()> {
    #[cfg(feature = "parquet")]
    return super::parquet::rows(path, take);
    #[cfg(not(feature = "parquet"))]
    {
        let _ = take;
        let hint = "build it with the feature `parquet`, or give the file as JSON lines";
        Err(Error::input("this program was built without parquet").at_file(path).hint(hint))
    }
}

/// Tasks as they are read, with the lines that they came from.
struct Collector<'a, F> {
    path: &'a Path,
    convert: F,
    lines: HashMap<String, usize>,
    tasks: Vec<Task>,
}

impl<F: FnMut(Value) -> Result<Option<Task>>> Collector<'_, F> {
    fn add(&mut self, value: Value, number: usize, unit: &str) -> Result<()> {
        let at = |e: Error| {
            if unit == "line" { e.at_line(self.path, number) } else { e.at(format_args!("{}, {unit} {number}", self.path.display())) }
        };
        let task = (self.convert)(value).and_then(|t| t.as_ref().map_or(Ok(()), Task::check).map(|()| t)).map_err(at)?;
        let Some(task) = task else { return Ok(()) };
        if let Some(first) = self.lines.insert(task.instance_id.clone(), number) {
            let message = format!("instance_id `{}` is already that of {unit} {first}", task.instance_id);
            return Err(at(Error::input(message)).hint("every task of a file needs a name of its own"));
        }
        self.tasks.push(task);
        Ok(())
    }

    fn finish(self) -> Result<Vec<Task>> {
        if self.tasks.is_empty() {
            let hint = "expected one JSON object a line, with SWE-bench's fields";
            return Err(Error::input("the file holds no task").at_file(self.path).hint(hint));
        }
        Ok(self.tasks)
    }
}

fn open(path: &Path) -> Result<Box<dyn BufRead>> {
    let failed = |e| Error::io("read", path, e);
    let mut input = BufReader::with_capacity(1 << 16, File::open(path).map_err(failed)?);
    if input.fill_buf().map_err(failed)?.starts_with(&[0x1f, 0x8b]) {
        return Ok(Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(input))));
    }
    Ok(Box::new(input))
}

/// Writes tasks as JSON lines, gzipped where the name ends in `.gz`. The file appears under its name when it is complete: it is written
/// to a temporary file beside it and renamed. One that is there already is replaced only by `force`.
pub fn write(path: &Path, tasks: &[Task], force: bool) -> Result<()> {
    prepare(path, tasks)?.publish(force)
}

/// A complete task file that does not have its name yet.
pub struct Prepared<'a> {
    temporary: tempfile::NamedTempFile,
    path: &'a Path,
}

impl Prepared<'_> {
    /// Gives the file its name. One that is there already is replaced only by `force`.
    pub fn publish(self, force: bool) -> Result<()> {
        refuse_replacing(self.path, force)?;
        let renamed = if force { self.temporary.persist(self.path) } else { self.temporary.persist_noclobber(self.path) };
        renamed.map(drop).map_err(|e| Error::io("write", self.path, e.error))
    }
}

/// The first half of [`write()`]: where several files belong together, all are prepared before any is published.
pub fn prepare<'a>(path: &'a Path, tasks: &[Task]) -> Result<Prepared<'a>> {
    prepare_with(path, |out| write_lines(out, tasks))
}

/// As [`prepare`], with `write` giving the text: for tasks that are not all in memory.
pub fn prepare_with<'a>(path: &'a Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<Prepared<'a>> {
    let failed = |e| Error::io("write", path, e);
    let temporary = tempfile::Builder::new().prefix(".tasks-").tempfile_in(folder_of(path)).map_err(failed)?;
    {
        let file = BufWriter::with_capacity(1 << 16, temporary.as_file());
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz")) {
            let mut encoder = GzEncoder::new(file, Compression::default());
            write(&mut encoder).and_then(|()| encoder.finish()?.flush()).map_err(failed)?;
        } else {
            let mut file = file;
            write(&mut file).and_then(|()| file.flush()).map_err(failed)?;
        }
    }
    share(temporary.as_file()).and_then(|()| temporary.as_file().sync_all()).map_err(failed)?;
    Ok(Prepared { temporary, path })
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Gives the file the permissions that a newly created one has by default; temporary files are made for their owner alone.
fn share(file: &File) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
    }
    let _ = file;
    Ok(())
}

/// Writes tasks as JSON lines.
pub fn write_lines(out: &mut dyn Write, tasks: &[Task]) -> io::Result<()> {
    for task in tasks {
        serde_json::to_writer(&mut *out, &task.to_json())?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// An error where `path` is there already, unless `force`, or cannot be made: to be asked before long work whose result goes there.
pub fn refuse_existing(path: &Path, force: bool) -> Result<()> {
    let folder = folder_of(path);
    if !folder.is_dir() {
        return Err(Error::usage(format!("there is no folder {}", folder.display())).at_file(path).hint("make it first"));
    }
    if let Err(e) = tempfile::tempfile_in(folder) {
        return Err(Error::io("write into", folder, e));
    }
    refuse_replacing(path, force)
}

fn refuse_replacing(path: &Path, force: bool) -> Result<()> {
    if !force && path.symlink_metadata().is_ok() {
        return Err(Error::usage("the file is there already").at_file(path).hint("choose another name, or --force to replace it"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATCH: &str = "diff --git a/b.py b/b.py\\n--- a/b.py\\n+++ b/b.py\\n@@ -1 +1 @@\\n-x\\n+y\\n";

    fn line(id: &str) -> String {
        format!("{{\"instance_id\": \"{id}\", \"problem_statement\": \"broken\", \"patch\": \"{PATCH}\"}}")
    }

    fn read_text(text: &str) -> Result<Vec<Task>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read(file.path())
    }

    #[test]
    fn reads_lines_and_lists() {
        let ids = |text: &str| read_text(text).unwrap().into_iter().map(|t| t.instance_id).collect::<Vec<_>>();
        assert_eq!(ids(&format!("\n{}\n\n{}", line("a"), line("b"))), ["a", "b"]);
        assert_eq!(ids(&format!(" [{},\n{}]\n", line("a"), line("b"))), ["a", "b"]);
        assert_eq!(ids(&format!("{}{}", "\n".repeat(100_000), line("a"))), ["a"]);
        let pretty = serde_json::to_string_pretty(&serde_json::from_str::<Value>(&line("a")).unwrap()).unwrap();
        assert_eq!(ids(&format!("\n{pretty}\n")), ["a"]);
    }

    #[test]
    fn errors_name_file_and_line() {
        let error = |text: &str| read_text(text).unwrap_err().to_string();
        assert!(error(&format!("{}\n\n{{oops\n", line("a"))).contains(":3: not JSON"));
        assert!(error(&format!("{}\n{{\"instance_id\": \"x\"}}\n", line("a"))).contains(":2: field `problem_statement`"));
        assert!(error(&format!("{}\n{}\n{}\n", line("a"), line("b"), line("a"))).contains(":3: instance_id `a` is already that of line 1"));
        assert!(error("\n{\n\"a\": 1,\n").contains(":4: not JSON"), "{}", error("\n{\n\"a\": 1,\n"));
        assert!(error(" \n\n").contains("holds no task"));
        assert!(error("[{},").contains("expected a JSON list"));
        assert!(error("[]").contains("holds no task"));
        let broken = line("a").replace("-x\\n", "");
        assert!(error(&broken).contains(":1: field `patch`: line 6 of the patch"), "{}", error(&broken));
        assert!(read(Path::new("no/such/file")).unwrap_err().to_string().contains("cannot read"));
    }

    #[test]
    fn writes_what_it_reads_and_does_not_overwrite() {
        let dir = tempfile::tempdir().unwrap();
        let tasks = read_text(&format!("{}\n{}\n", line("a"), line("b"))).unwrap();
        for name in ["tasks.jsonl", "tasks.jsonl.gz"] {
            let path = dir.path().join(name);
            write(&path, &tasks, false).unwrap();
            assert_eq!(read(&path).unwrap(), tasks);
            let refused = write(&path, &tasks[..1], false).unwrap_err();
            assert_eq!((refused.exit_code(), read(&path).unwrap().len()), (2, 2));
            write(&path, &tasks[..1], true).unwrap();
            assert_eq!(read(&path).unwrap().len(), 1);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary file is left");
    }

    #[test]
    fn a_cut_gzip_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.gz");
        write(&path, &read_text(&line("a")).unwrap(), false).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 12]).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("t.gz"));
    }
}
