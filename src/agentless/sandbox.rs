//! Running a command on a copy of a tree, confined: code that a model wrote must not reach anything else.
//!
//! The command runs in name spaces of its own (user, mount, network, process, IPC, host name; `unshare` of util-linux, no privileges
//! needed). It sees the system's folders read-only, an empty temporary folder and its copy of the tree at `/work`, and nothing else: no
//! network (not even the loop-back interface is up), no other process, no home folder, no variable of the environment. It has no
//! capability, can gain none (`no_new_privs`), and can make no further user name space. Limits bound time, memory a process, processes,
//! file sizes and output. All processes end with the command.
//!
//! Not bounded: memory over all processes together (processes x memory is), the disk that the tree's copy grows to, and what the kernel
//! itself lets happen: there is no filter of system calls.
//!
//! Where any of this cannot be had, [`Sandbox::new`] refuses. Nothing is ever run unconfined.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// What a confined command may use.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long it may run.
    pub time: Duration,
    /// The most bytes of address space, each process.
    pub memory: u64,
    /// The most processes and threads at one time.
    pub processes: u64,
    /// The most bytes of a file that it writes.
    pub file: u64,
    /// The most bytes in its temporary folder.
    pub temporary: u64,
    /// The most bytes kept of its output, and as many of its errors; the rest is read and dropped.
    pub output: usize,
}

impl Default for Limits {
    /// Five minutes, 4 GiB, 256 processes, 1 GiB a file, 1 GiB of temporary files, 1 MiB of output.
    fn default() -> Self {
        Self { time: Duration::from_secs(300), memory: 4 << 30, processes: 256, file: 1 << 30, temporary: 1 << 30, output: 1 << 20 }
    }
}

/// A way to run commands, tried out once.
#[derive(Clone, Debug)]
pub struct Sandbox {
    limits: Limits,
    read_only: Vec<PathBuf>,
}

/// A copy of a tree for confined commands, removed when it is dropped. Several commands may run on it, one after another.
#[derive(Debug)]
pub struct Workspace {
    folder: tempfile::TempDir,
}

/// What came of a command.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its exit status; none where a signal ended it, or the time.
    pub status: Option<i32>,
    /// True if its time was up.
    pub timed_out: bool,
    /// What it wrote to stdout, up to the limit.
    pub stdout: Vec<u8>,
    /// What it wrote to stderr, up to the limit.
    pub stderr: Vec<u8>,
}

impl Outcome {
    /// True if the command ended by itself with status 0.
    pub fn success(&self) -> bool {
        self.status == Some(0)
    }
}

/// Whom a command of root runs as: `nobody`. Limits on processes do not hold for root.
const NOBODY: u32 = 65_534;

/// Where programs are looked for, before and inside.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin";

const SET_UP: &str = include_str!("sandbox.sh");

impl Sandbox {
    /// A sandbox with these limits. `read_only` are folders which the commands see besides the system's, at the same paths (an
    /// interpreter's environment, a compiler's files).
    ///
    /// # Errors
    ///
    /// The machine has no way to confine a command: not Linux, no util-linux, user name spaces turned off.
    pub fn new(limits: Limits, read_only: Vec<PathBuf>) -> Result<Self> {
        let sandbox = Self { limits, read_only };
        let probe = Workspace::empty()?;
        let outcome = sandbox.run(&probe, ["true"], &[])?;
        if outcome.success() { Ok(sandbox) } else { Err(refused(&String::from_utf8_lossy(&outcome.stderr))) }
    }

    /// Runs a command in the workspace's tree, with `environment` as all its variables beside `PATH`, `HOME` and `LANG`.
    ///
    /// # Errors
    ///
    /// The confinement cannot be had; then the command has not run. A command that fails is no error.
    pub fn run<S: AsRef<OsStr>>(
        &self,
        workspace: &Workspace,
        command: impl IntoIterator<Item = S>,
        environment: &[(&str, &str)],
    ) -> Result<Outcome> {
        if !cfg!(target_os = "linux") {
            return Err(refused("this system is not Linux"));
        }
        let mut random = [0u8; 16];
        fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut random)).map_err(|e| refused(&e.to_string()))?;
        let ready: String = random.iter().map(|b| format!("{b:02x}")).collect();
        let mut child = self.command(workspace, command, environment, &ready).spawn().map_err(|e| refused(&e.to_string()))?;
        let limit = self.limits.output;
        let (out, err) = (reader(child.stdout.take(), limit), reader(child.stderr.take(), limit + ready.len() + 1));
        let (status, timed_out) = wait(&mut child, self.limits.time)?;
        let (stdout, stderr) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
        // The command comes after this line, so nothing that it does can stand for it.
        let Some(stderr) = stderr.strip_prefix(format!("{ready}\n").as_bytes()) else {
            return Err(refused(&String::from_utf8_lossy(&stderr)));
        };
        Ok(Outcome { status: status.code().filter(|_| !timed_out), timed_out, stdout, stderr: stderr.to_vec() })
    }

    fn command<S: AsRef<OsStr>>(
        &self,
        workspace: &Workspace,
        command: impl IntoIterator<Item = S>,
        environment: &[(&str, &str)],
        ready: &str,
    ) -> Command {
        let spaces = ["--user", "--map-root-user", "--mount", "--net", "--pid", "--fork", "--ipc", "--uts", "--kill-child=SIGKILL", "--"];
        let mut out = if is_root() {
            let mut out = Command::new("setpriv");
            let (user, group) = (format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"));
            out.args([&user, &group, "--clear-groups", "--", "unshare"].map(|s: &str| s));
            out
        } else {
            Command::new("unshare")
        };
        let l = &self.limits;
        out.args(spaces).args(["sh", "-c", SET_UP, "sandbox"]).arg(workspace.root()).arg(workspace.tree());
        let seconds = l.time.as_secs().saturating_mul(16).max(1);
        for number in [l.temporary, l.memory, l.processes, seconds, l.file] {
            out.arg(number.to_string());
        }
        out.arg(ready).arg(self.read_only.len().to_string()).args(&self.read_only).args(command);
        out.env_clear().env("PATH", PATH).env("HOME", "/tmp").env("LANG", "C.UTF-8").envs(environment.iter().copied());
        out.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).current_dir("/");
        out
    }
}

fn refused(why: &str) -> Error {
    let why = why.trim();
    let hint = "it needs Linux with util-linux and user name spaces (sysctl user.max_user_namespaces above 0, no policy against them); \
                nothing is run unconfined";
    Error::device(format!("commands cannot be confined on this machine: {why}")).hint(hint)
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// Waits for the child to end, or ends it (and all its processes with it) when its time is up.
fn wait(child: &mut Child, time: Duration) -> Result<(ExitStatus, bool)> {
    let failed = |e| Error::io("wait for", Path::new("the confined command"), e);
    let end = Instant::now() + time;
    loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            return Ok((status, false));
        }
        if Instant::now() >= end {
            child.kill().map_err(failed)?;
            return Ok((child.wait().map_err(failed)?, true));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Reads all of a stream and keeps its first `limit` bytes.
fn reader(stream: Option<impl Read + Send + 'static>, limit: usize) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let (mut kept, mut buffer) = (Vec::new(), [0; 1 << 14]);
        let Some(mut stream) = stream else { return kept };
        while let Ok(n) = stream.read(&mut buffer)
            && n > 0
        {
            kept.extend_from_slice(&buffer[..n.min(limit - kept.len())]);
        }
        kept
    })
}

impl Workspace {
    /// A workspace with an empty tree.
    pub fn empty() -> Result<Self> {
        let parent = std::env::temp_dir();
        let failed = |e| Error::io("make a folder in", &parent, e);
        let folder = tempfile::Builder::new().prefix("sandbox-").tempdir().map_err(failed)?;
        // `nobody` has to get through it, and need not see what is in it.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).map_err(failed)?;
        let workspace = Self { folder };
        for path in [workspace.root(), workspace.tree()] {
            fs::create_dir(&path).map_err(failed)?;
            give(&path).map_err(failed)?;
        }
        Ok(workspace)
    }

    /// A workspace with a copy of all files, folders and links below `from`. Links that lead out of it lead nowhere when confined.
    pub fn copy_of(from: &Path) -> Result<Self> {
        let workspace = Self::empty()?;
        copy(from, &workspace.tree())?;
        Ok(workspace)
    }

    /// The copy: read and change it between commands.
    pub fn tree(&self) -> PathBuf {
        self.folder.path().join("tree")
    }

    /// Writes a file of the tree, as one that the command may change.
    pub fn write(&self, path: &str, content: &str) -> Result<()> {
        let place = self.tree().join(path);
        if Path::new(path).components().any(|c| !matches!(c, std::path::Component::Normal(_))) {
            return Err(Error::input("expected a path inside of the tree").at(path));
        }
        let failed = |e| Error::io("write", &place, e);
        let mut folder = self.tree();
        for part in Path::new(path).parent().unwrap_or(Path::new("")).components() {
            folder.push(part);
            match fs::create_dir(&folder) {
                Ok(()) => give(&folder).map_err(failed)?,
                // A link might lead out of the tree.
                Err(_) if folder.symlink_metadata().is_ok_and(|m| m.is_dir()) => {}
                Err(e) => return Err(failed(e)),
            }
        }
        if place.symlink_metadata().is_ok_and(|m| !m.is_file()) {
            return Err(Error::input("it is no plain file").at_file(&place));
        }
        fs::write(&place, content).and_then(|()| give(&place)).map_err(failed)
    }

    /// An empty folder, on which the command's file system is built.
    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }
}

/// Makes a path the property of whom the commands run as.
fn give(path: &Path) -> std::io::Result<()> {
    if is_root() { lchown(path, Some(NOBODY), Some(NOBODY)) } else { Ok(()) }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let failed = |e| Error::io("copy", from, e);
    for entry in fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(failed)?;
        let failed = |e| Error::io("copy", &source, e);
        if kind.is_dir() {
            fs::create_dir(&target).map_err(failed)?;
            give(&target).map_err(failed)?;
            copy(&source, &target)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&source).map_err(failed)?, &target).and_then(|()| give(&target)).map_err(failed)?;
        } else if kind.is_file() {
            fs::copy(&source, &target).map_err(failed)?;
            give(&target).map_err(failed)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
