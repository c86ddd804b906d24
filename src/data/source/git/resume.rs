//! Mining into a file, so that what was interrupted goes on where it was.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{MineOptions, MineReport, Mining, Skip};
use crate::data::Task;
use crate::data::near_duplicates::Sketch;
use crate::data::random::hash;
use crate::data::source::funnel::beside;
use crate::data::source::swe_bench::{prepare_with, refuse_existing};
use crate::{Error, Result};

/// After so many commits the state is saved: so much is mined again after a kill.
const SAVE_EVERY: usize = 2048;

/// Where an interrupted mining stands.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// A hash of the options.
    options: String,
    /// The commit that the walk began at.
    head: String,
    /// How many commits have been looked at.
    commits: usize,
    taken: usize,
    skipped: BTreeMap<String, usize>,
    /// How long the part of the file is that these commits gave.
    bytes: u64,
}

/// What is asked of a task that was taken.
#[derive(Deserialize)]
struct Taken {
    patch: String,
}

/// The files beside `out` that an interrupted mining leaves.
struct Files {
    /// The tasks so far, one a line, the newest first.
    tasks: PathBuf,
    state: PathBuf,
}

/// Mines as [`super::mine`] does, into the task file `out` (gzipped if it ends in `.gz`), which appears when it is complete. Tasks and
/// state are kept beside it (`OUT.partial`, `OUT.state.json`) until then: the same call after a kill, or after an error of `progress`,
/// goes on from there, and ends with the same bytes.
///
/// # Errors
///
/// As [`super::mine`]; an `out` that is there already, unless `force`; a state left by other options or another HEAD, unless `force`
/// (then it begins anew).
pub fn mine_to_file(
    path: &Path,
    options: &MineOptions,
    out: &Path,
    force: bool,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<MineReport> {
    refuse_existing(out, force)?;
    let files = Files { tasks: beside(out, "partial"), state: beside(out, "state.json") };
    let mut mining = Mining::start(path, options)?;
    let key = format!("{:016x}", hash(format!("{options:?} {}", mining.report.repo).as_bytes()));
    let state = read_state(&files.state, &key, &mining.report.head, force)?;
    let failed = |e| Error::io("write", &files.tasks, e);
    let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&files.tasks).map_err(failed)?;
    file.set_len(state.as_ref().map_or(0, |s| s.bytes)).map_err(failed)?;
    file.seek(SeekFrom::End(0)).map_err(failed)?;
    if let Some(state) = state {
        go_on(&mut mining, &state, &files.tasks)?;
    }
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    let mut saved = mining.report.commits;
    while let Some(batch) = mining.batch()? {
        let lines: Vec<Vec<u8>> = mining.pool.install(|| batch.par_iter().map(line).collect::<Result<_>>())?;
        lines.iter().try_for_each(|l| writer.write_all(l)).map_err(failed)?;
        let heard = progress(mining.report.commits, mining.report.taken);
        if heard.is_err() || mining.report.commits - saved >= SAVE_EVERY {
            writer.flush().map_err(failed)?;
            save(&mining, &key, writer.get_mut(), &files).map_err(failed)?;
            saved = mining.report.commits;
        }
        heard?;
    }
    let mut file = writer.into_inner().map_err(|e| failed(e.into_error()))?;
    if mining.report.taken > 0 {
        prepare_with(out, |out| write_reversed(&mut file, out))?.publish(force)?;
    }
    for file in [&files.state, &files.tasks] {
        match std::fs::remove_file(file) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", file, e)),
            _ => {}
        }
    }
    Ok(mining.report)
}

/// The state that was left, if it is of these options and this HEAD.
fn read_state(path: &Path, options: &str, head: &str, force: bool) -> Result<Option<State>> {
    let text = match std::fs::read_to_string(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(|e| Error::io("read", path, e))?,
    };
    let hint = "--force begins anew; or give the options of that run";
    match serde_json::from_str::<State>(&text) {
        Ok(state) if state.options == options && state.head == head => Ok(Some(state)),
        _ if force => Ok(None),
        Ok(state) if state.head != head => {
            Err(Error::usage(format!("an interrupted mining began at commit {}, HEAD is now {head}", state.head)).at_file(path).hint(hint))
        }
        Ok(_) => Err(Error::usage("an interrupted mining had other options").at_file(path).hint(hint)),
        Err(e) => Err(Error::input(format!("not the state of a mining: {e}")).at_file(path).hint(hint)),
    }
}

/// Brings a fresh walk to where the state stands: its commits are walked over without being looked at, and the patches taken are those of
/// the file of tasks.
fn go_on(mining: &mut Mining<'_>, state: &State, tasks: &Path) -> Result<()> {
    for _ in 0..state.commits {
        mining.walk.next(&mining.repository)?;
    }
    mining.report.commits = state.commits;
    mining.report.taken = state.taken;
    mining.report.skipped = Skip::ALL.into_iter().filter_map(|s| Some((s, *state.skipped.get(s.describe().0)?))).collect();
    let failed = |e| Error::io("read", tasks, e);
    let lines = BufReader::with_capacity(1 << 20, File::open(tasks).map_err(failed)?).lines();
    for (i, line) in lines.enumerate() {
        let hint = "--force begins anew";
        let taken: Taken =
            serde_json::from_str(&line.map_err(failed)?).map_err(|e| Error::input(e.to_string()).at_line(tasks, i + 1).hint(hint))?;
        // What was taken repeats nothing.
        let _ = mining.seen.keep(&Sketch::of(&taken.patch));
    }
    Ok(())
}

/// Makes what was written durable, then the state that speaks of it.
fn save(mining: &Mining<'_>, options: &str, file: &mut File, files: &Files) -> io::Result<()> {
    file.sync_data()?;
    let report = &mining.report;
    let state = State {
        options: options.to_owned(),
        head: report.head.clone(),
        commits: report.commits,
        taken: report.taken,
        skipped: report.skipped.iter().map(|(skip, n)| (skip.describe().0.to_owned(), *n)).collect(),
        bytes: file.metadata()?.len(),
    };
    let folder = files.state.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temporary = tempfile::Builder::new().prefix(".state-").tempfile_in(folder)?;
    serde_json::to_writer(&mut temporary, &state)?;
    temporary.as_file().sync_all()?;
    temporary.persist(&files.state).map_err(|e| e.error)?;
    Ok(())
}

fn line(task: &Task) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(&task.to_json()).map_err(|e| Error::input(format!("cannot write the task: {e}")))?;
    line.push(b'\n');
    Ok(line)
}

/// Writes the lines of `file`, the last first.
fn write_reversed(file: &mut File, out: &mut dyn Write) -> io::Result<()> {
    file.seek(SeekFrom::Start(0))?;
    let mut reader = BufReader::with_capacity(1 << 20, &mut *file);
    let (mut starts, mut at) = (vec![0u64], 0);
    loop {
        let n = reader.skip_until(b'\n')?;
        if n == 0 {
            break;
        }
        at += n as u64;
        starts.push(at);
    }
    let mut line = Vec::new();
    for ends in starts.windows(2).rev() {
        file.seek(SeekFrom::Start(ends[0]))?;
        line.resize((ends[1] - ends[0]) as usize, 0);
        file.read_exact(&mut line)?;
        out.write_all(&line)?;
    }
    Ok(())
}
