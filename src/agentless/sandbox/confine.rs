//! The last step into the sandbox: this program again, inside of it, as its first process. It installs the filters on itself, runs the
//! command under limits, and ends with it; then the kernel ends every process that is left.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus};

use super::filter;

/// The name by which the program knows that it is to be this.
pub(crate) const NAME: &str = "confine";

/// How Landlock's state is written, filled up so that the line has always the same length.
pub(super) const STATE_WIDTH: usize = 6;

/// The folders that a command may write to, and the devices that it may.
const WRITABLE: [&str; 6] = ["/work", "/tmp", "/dev/null", "/dev/zero", "/dev/full", "/dev/random"];

/// Takes `READY MEMORY PROCESSES CPU FILE COMMAND...`; gives the command's exit status (128 + the signal that ended it).
pub(crate) fn run(arguments: impl Iterator<Item = OsString>) -> u8 {
    match confined(arguments) {
        Ok(status) => status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)).to_le_bytes()[0],
        Err(e) => {
            // Nobody may be there to read it.
            let _ = writeln!(std::io::stderr(), "{e}");
            125
        }
    }
}

fn confined(arguments: impl Iterator<Item = OsString>) -> Result<ExitStatus, String> {
    let mut arguments = arguments;
    let mut text = || arguments.next().and_then(|a| a.into_string().ok()).ok_or("it is part of the sandbox, and of no use by itself");
    let ready = text()?;
    let [memory, processes, cpu, file] = [text()?, text()?, text()?, text()?];
    let landlock = filter::restrict(&WRITABLE)?;
    filter::refuse_calls()?;
    let mut command = Command::new("prlimit");
    command.args([format!("--as={memory}"), format!("--nproc={processes}"), format!("--cpu={cpu}"), format!("--fsize={file}")]);
    command.args(["--core=0", "--nofile=1024", "--"]).args(arguments);
    // Whoever started this knows by it that all of the above has worked.
    writeln!(std::io::stderr(), "{ready} {landlock:STATE_WIDTH$}").map_err(|e| e.to_string())?;
    command.status().map_err(|e| format!("prlimit: {e}"))
}
