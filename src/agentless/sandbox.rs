//! Running a command on a copy of a tree, confined: code that a model wrote must not reach anything else.
//!
//! The command runs in name spaces of its own (user, mount, network, process, IPC, host name; `unshare` of util-linux, no privileges
//! needed). It sees the system's folders read-only, an empty temporary folder and its copy of the tree at `/work`, and nothing else: no
//! network (not even the loop-back interface is up), no other process, no home folder, no variable of the environment. It has no
//! capability, can gain none (`no_new_privs`), and can make no further user name space. A filter of system calls (seccomp) refuses it
//! `ptrace`, mounts, name spaces, keys, BPF, io_uring and every socket but Unix ones; where the kernel has Landlock, that holds it a second
//! time to writing in its two folders. Limits bound time, memory (a process, and all together), processes, file sizes, both folders (they
//! are in memory, and gone with the command) and output. All processes end with the command.
//!
//! Not bounded: processor time within the time limit, and what the kernel lets happen through a bug in a call that is not refused.
//!
//! Where any of this but Landlock cannot be had, [`Sandbox::new`] refuses. Nothing is ever run unconfined.

#[cfg(target_os = "linux")]
pub(crate) mod confine;
#[cfg(target_os = "linux")]
mod filter;
mod watch;
mod workspace;

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crate::{Error, Result};
pub use workspace::Workspace;
use workspace::{NOBODY, is_root, passable_folder};

/// What a confined command may use.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long it may run.
    pub time: Duration,
    /// The most bytes of address space, each process.
    pub memory: u64,
    /// The most bytes of memory that all its processes use together, looked at some twenty times a second.
    pub total: u64,
    /// The most processes and threads at one time.
    pub processes: u64,
    /// The most bytes of a file that it writes.
    pub file: u64,
    /// The most bytes in its temporary folder.
    pub temporary: u64,
    /// The most bytes in its copy of the tree.
    pub disk: u64,
    /// The most bytes kept of its output, and as many of its errors: the last ones. The rest is read and dropped.
    pub output: usize,
}

impl Default for Limits {
    /// Five minutes, 4 GiB a process and together, 256 processes, 1 GiB a file, 1 GiB of temporary files, 1 GiB of tree, 4 MiB of output.
    fn default() -> Self {
        let (time, gib) = (Duration::from_secs(300), 1 << 30);
        Self { time, memory: 4 * gib, total: 4 * gib, processes: 256, file: gib, temporary: gib, disk: gib, output: 4 << 20 }
    }
}

/// A way to run commands, tried out once.
#[derive(Clone, Debug)]
pub struct Sandbox {
    limits: Limits,
    read_only: Vec<PathBuf>,
    helper: Arc<Helper>,
    landlock: String,
}

/// A copy of this program that the command's user can start.
#[derive(Debug)]
struct Helper {
    folder: tempfile::TempDir,
}

/// Why a command was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Its time was up.
    Time,
    /// Its processes used too much memory together.
    Memory,
}

/// What came of a command.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its exit status, 128 and the signal's number where one ended it; none where it was stopped.
    pub status: Option<i32>,
    /// Why it was stopped, if it was.
    pub stopped: Option<Stopped>,
    /// The end of what it wrote to stdout, up to the limit.
    pub stdout: Vec<u8>,
    /// The end of what it wrote to stderr, up to the limit.
    pub stderr: Vec<u8>,
}

impl Outcome {
    /// True if the command ended by itself with status 0.
    pub fn success(&self) -> bool {
        self.status == Some(0)
    }
}

/// Where programs are looked for, before and inside.
pub(crate) const PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin";

const SET_UP: &str = include_str!("sandbox.sh");

impl Sandbox {
    /// A sandbox with these limits. `read_only` are folders which the commands see besides the system's, at the same paths (an
    /// interpreter's environment, a compiler's files).
    ///
    /// # Errors
    ///
    /// The machine has no way to confine a command: not Linux, no util-linux, user name spaces turned off.
    pub fn new(limits: Limits, read_only: Vec<PathBuf>) -> Result<Self> {
        let this = std::env::current_exe().map_err(|e| Error::io("find", Path::new("this program"), e))?;
        Self::with_helper(limits, read_only, &this)
    }

    /// As [`Sandbox::new`], with the path of the `sorft-native` program, for callers that are another.
    pub fn with_helper(limits: Limits, read_only: Vec<PathBuf>, program: &Path) -> Result<Self> {
        if !cfg!(target_os = "linux") {
            return Err(refused("this system is not Linux"));
        }
        let sandbox = Self { limits, read_only, helper: Arc::new(Helper::new(program)?), landlock: String::new() };
        let (outcome, landlock) = sandbox.start(&Workspace::empty()?, ["true"], &[], &sandbox.limits)?;
        match outcome.success() {
            true => Ok(Self { landlock, ..sandbox }),
            false => Err(refused(&String::from_utf8_lossy(&outcome.stderr))),
        }
    }

    /// The same sandbox with other limits and other folders to be seen.
    pub fn with(&self, limits: Limits, read_only: Vec<PathBuf>) -> Self {
        Self { limits, read_only, ..self.clone() }
    }

    /// How much of Landlock this kernel has: `full`, `partly` or `none`.
    pub fn landlock(&self) -> &str {
        &self.landlock
    }

    /// What a command may use.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Runs a command in a copy of the workspace's tree, with `environment` as all its variables beside `PATH`, `HOME` and `LANG`.
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
        Ok(self.start(workspace, command, environment, &self.limits)?.0)
    }

    fn start<S: AsRef<OsStr>>(
        &self,
        workspace: &Workspace,
        command: impl IntoIterator<Item = S>,
        environment: &[(&str, &str)],
        limits: &Limits,
    ) -> Result<(Outcome, String)> {
        let mut random = [0u8; 16];
        fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut random)).map_err(|e| refused(&e.to_string()))?;
        let ready: String = random.iter().map(|b| format!("{b:02x}")).collect();
        let mut child = self.command(workspace, command, environment, &ready).spawn().map_err(|e| refused(&e.to_string()))?;
        let (out, err) = (reader(child.stdout.take(), 0, limits.output), reader(child.stderr.take(), READY_LINE, limits.output));
        let (status, stopped) = watch::wait(&mut child, limits)?;
        let ((_, stdout), (first, stderr)) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
        // The command comes after this line, so nothing that it does can stand for it.
        let first = String::from_utf8_lossy(&first).into_owned();
        let landlock = match first.strip_prefix(&ready) {
            Some(state) if state.ends_with('\n') => state.trim().to_owned(),
            _ if stopped.is_some() => return Err(refused("its time or memory was up before it began")),
            _ => return Err(refused(&(first + &String::from_utf8_lossy(&stderr)))),
        };
        Ok((Outcome { status: status.code().filter(|_| stopped.is_none()), stopped, stdout, stderr }, landlock))
    }

    fn command<S: AsRef<OsStr>>(
        &self,
        workspace: &Workspace,
        command: impl IntoIterator<Item = S>,
        environment: &[(&str, &str)],
        ready: &str,
    ) -> Command {
        let spaces = ["--user", "--map-root-user", "--mount", "--net", "--pid", "--fork", "--ipc", "--uts", "--kill-child=SIGKILL", "--"];
        // It does not outlive this program either.
        let mut out = Command::new("setpriv");
        out.arg("--pdeathsig=KILL");
        if is_root() {
            out.args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")]).arg("--clear-groups");
        }
        out.args(["--", "unshare"]).args(spaces).args(["sh", "-c", SET_UP, "sandbox"]).arg(workspace.root()).arg(workspace.tree());
        let l = &self.limits;
        out.args([l.temporary, l.disk].map(|n| n.to_string())).arg(self.helper.path());
        out.arg(self.read_only.len().to_string()).args(&self.read_only).arg(ready);
        let seconds = l.time.as_secs().saturating_mul(16).max(1);
        out.args([l.memory, l.processes, seconds, l.file].map(|n| n.to_string())).args(command);
        out.env_clear().env("PATH", PATH).env("HOME", "/tmp").env("LANG", "C.UTF-8").envs(environment.iter().copied());
        out.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).current_dir("/");
        out
    }
}

impl Helper {
    /// Links the program into a folder that everybody can pass, or copies it there: its own place may be closed to the command's user.
    fn new(program: &Path) -> Result<Self> {
        let helper = Self { folder: passable_folder()? };
        let failed = |e| Error::io("copy", program, e);
        if fs::hard_link(program, helper.path()).is_err() {
            fs::copy(program, helper.path()).map_err(failed)?;
        }
        let mode = fs::metadata(helper.path()).map_err(failed)?.permissions().mode();
        if mode & 0o005 != 0o005 {
            // A link shares its mode with the program, which is to stay as it is.
            fs::remove_file(helper.path()).and_then(|()| fs::copy(program, helper.path())).map_err(failed)?;
            fs::set_permissions(helper.path(), fs::Permissions::from_mode(0o755)).map_err(failed)?;
        }
        Ok(helper)
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("confine")
    }
}

fn refused(why: &str) -> Error {
    let why = why.trim();
    let hint = "it needs Linux with seccomp, util-linux (unshare, setpriv, prlimit) and user name spaces (sysctl user.max_user_namespaces \
                above 0; on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0; in a container, one that allows them); nothing is run \
                unconfined";
    Error::device(format!("commands cannot be confined on this machine: {why}")).hint(hint)
}

/// Bytes of the line that says that the confinement stands: 32 digits, a space, Landlock's state, a line feed.
const READY_LINE: usize = 32 + 1 + 6 + 1;

/// Reads all of a stream; keeps its first `head` bytes, and of the others the last `limit`.
fn reader(stream: Option<impl Read + Send + 'static>, head: usize, limit: usize) -> std::thread::JoinHandle<(Vec<u8>, Vec<u8>)> {
    std::thread::spawn(move || {
        let (mut first, mut kept, mut buffer) = (Vec::new(), Vec::new(), [0; 1 << 14]);
        let Some(mut stream) = stream else { return (first, kept) };
        while let Ok(n) = stream.read(&mut buffer)
            && n > 0
        {
            let cut = n.min(head - first.len());
            first.extend_from_slice(&buffer[..cut]);
            kept.extend_from_slice(&buffer[cut..n]);
            if kept.len() > limit.saturating_mul(2) {
                kept.drain(..kept.len() - limit);
            }
        }
        kept.drain(..kept.len().saturating_sub(limit));
        (first, kept)
    })
}
