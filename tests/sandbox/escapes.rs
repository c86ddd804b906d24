//! Commands that try to get out, or to use up the machine.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sorft_native::agentless::sandbox::{Limits, Outcome, Sandbox, Stopped, Workspace};

use super::{quick, sandbox_with};

fn sandbox(limits: Limits) -> Option<Sandbox> {
    sandbox_with(limits, Vec::new())
}

fn text(outcome: &Outcome) -> String {
    format!("{}{}", String::from_utf8_lossy(&outcome.stdout), String::from_utf8_lossy(&outcome.stderr))
}

fn sh(sandbox: &Sandbox, workspace: &Workspace, script: &str) -> (Option<i32>, String) {
    let outcome = sandbox.run(workspace, ["sh", "-c", script], &[]).unwrap();
    (outcome.status, text(&outcome))
}

/// What a Python program prints inside; none, with a word about it, where there is no Python.
fn python(sandbox: &Sandbox, program: &str) -> Option<Outcome> {
    if !PathBuf::from("/usr/bin/python3").exists() {
        assert!(std::env::var_os("SORFT_STRICT").is_none(), "no /usr/bin/python3");
        eprintln!("SKIPPED: no /usr/bin/python3");
        return None;
    }
    Some(sandbox.run(&Workspace::empty().unwrap(), ["/usr/bin/python3", "-c", program], &[]).unwrap())
}

#[test]
fn a_command_works_on_its_copy() {
    let Some(sandbox) = sandbox(quick()) else { return };
    let original = tempfile::tempdir().unwrap();
    fs::create_dir(original.path().join("d")).unwrap();
    fs::write(original.path().join("d/a.txt"), "one\n").unwrap();
    let workspace = Workspace::copy_of(original.path()).unwrap();
    workspace.write("e/b.txt", "two\n").unwrap();
    let script = "cat d/a.txt e/b.txt; echo three > d/a.txt; cat d/a.txt; echo x > /tmp/x && cat /tmp/x; exit 7";
    for _ in 0..2 {
        // The second command finds what the first one found.
        assert_eq!(sh(&sandbox, &workspace, script), (Some(7), "one\ntwo\nthree\nx\n".to_owned()));
    }
    assert_eq!(fs::read_to_string(original.path().join("d/a.txt")).unwrap(), "one\n");
    assert_eq!(workspace.read("d/a.txt").unwrap().as_deref(), Some("one\n"));
    assert!(workspace.write("../c", "").is_err() && workspace.write("/c", "").is_err() && workspace.read("d/../../x").is_err());
    workspace.remove("d/a.txt").unwrap();
    assert_eq!(workspace.read("d/a.txt").unwrap(), None);
    assert_eq!(sh(&sandbox, &workspace, "kill -9 $$").0, Some(128 + 9));
}

#[test]
fn nothing_outside_can_be_written_or_seen() {
    let Some(sandbox) = sandbox(quick()) else { return };
    let secret = tempfile::tempdir().unwrap();
    fs::write(secret.path().join("key"), "sesame").unwrap();
    let workspace = Workspace::empty().unwrap();
    let path = secret.path().join("key");
    let script = format!(
        "cat {0}; cat /proc/1/root{0}; ls /home /root /old/root ~/.ssh; for d in / /usr /etc /bin /dev /usr/bin /proc/sys/kernel /.confine; do touch $d/new; \
         done; echo x > /.confine; mount -o remount,rw /usr; mount -t tmpfs none /usr; unshare --user true; mknod sda b 8 0; chroot / true; true",
        path.display()
    );
    let (status, text) = sh(&sandbox, &workspace, &script);
    assert_eq!(status, Some(0));
    assert!(!text.contains("sesame"), "{text}");
    assert_eq!(text.matches("touch: ").count(), 8, "{text}");
    assert!(text.contains("mount: ") && text.contains("unshare: ") && text.contains("mknod: ") && text.contains("chroot: "), "{text}");
    symlink(&path, workspace.tree().join("link")).unwrap();
    assert_eq!(sh(&sandbox, &workspace, "cat link; echo open > link").0, Some(2), "a link out of the tree leads nowhere");
    assert!(workspace.write("link", "open").is_err() && workspace.read("link").unwrap().is_none());
    assert_eq!(fs::read_to_string(path).unwrap(), "sesame");
}

#[test]
fn no_secret_is_in_the_environment_or_in_other_processes() {
    let Some(sandbox) = sandbox(quick()) else { return };
    let workspace = Workspace::empty().unwrap();
    let outcome = sandbox.run(&workspace, ["env"], &[("GIVEN", "1")]).unwrap();
    let mut names: Vec<String> =
        String::from_utf8(outcome.stdout).unwrap().lines().filter_map(|l| Some(l.split_once('=')?.0.to_owned())).collect();
    // Some shells set these for themselves.
    names.retain(|n| !["_", "PWD", "SHLVL"].contains(&n.as_str()));
    names.sort();
    assert_eq!(names, ["GIVEN", "HOME", "LANG", "PATH"]);
    let (_, text) = sh(&sandbox, &workspace, "cat /proc/*/environ | tr '\\0' '\\n' | grep -c CARGO; ls /proc | grep -c '^[0-9]*$'");
    let mut counts = text.lines().map(|l| l.parse::<usize>().unwrap());
    assert_eq!(counts.next(), Some(0), "{text}");
    assert!(counts.next().unwrap() < 10, "{text}");
}

#[test]
fn processes_outside_cannot_be_seen_or_killed() {
    let Some(sandbox) = sandbox(quick()) else { return };
    let mut outside = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let script = format!("ls -d /proc/{0}; kill -9 {0}; kill -9 -1; echo alive", outside.id());
    let (_, text) = sh(&sandbox, &Workspace::empty().unwrap(), &script);
    assert!(!text.contains(&format!("/proc/{}\n", outside.id())), "{text}");
    assert!(outside.try_wait().unwrap().is_none(), "{text}");
    outside.kill().unwrap();
    outside.wait().unwrap();
}

#[test]
fn a_daemon_ends_with_the_command() {
    let Some(sandbox) = sandbox(quick()) else { return };
    // A name that no other process has: seconds with the number of this process.
    let mark = format!("31{}", std::process::id());
    let began = Instant::now();
    let script = format!("setsid nohup sleep {mark} > /dev/null 2>&1 & (setsid sleep {mark} &); echo done");
    let (status, text) = sh(&sandbox, &Workspace::empty().unwrap(), &script);
    assert_eq!((status, text.as_str()), (Some(0), "done\n"));
    assert!(began.elapsed() < Duration::from_secs(10), "its daemons hold its output open");
    let is_daemon = |entry: fs::DirEntry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.split(|&b| b == 0).eq([b"sleep".as_slice(), mark.as_bytes(), b""])
    };
    assert!(!fs::read_dir("/proc").unwrap().flatten().any(is_daemon));
}

#[test]
fn there_is_no_network() {
    let Some(sandbox) = sandbox(quick()) else { return };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let workspace = Workspace::empty().unwrap();
    let (status, text) = sh(&sandbox, &workspace, &format!("cat /proc/net/dev; exec bash -c 'echo x > /dev/tcp/127.0.0.1/{port}'"));
    assert_ne!(status, Some(0));
    assert!(!text.contains("eth0"), "{text}");
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err());
}

#[test]
fn no_socket_but_a_unix_one_and_none_to_the_host() {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixListener};
    let Some(sandbox) = sandbox(quick()) else { return };
    let name = format!("sorft-test-{}", std::process::id());
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let program = format!(
        "import socket\n\
         for family, kind in [(2, 1), (2, 2), (2, 3), (10, 1), (16, 3), (17, 3), (38, 5), (40, 1), (31, 1)]:\n\
         \x20   try: socket.socket(family, kind); print('opened', family)\n\
         \x20   except OSError as e: print(e.errno)\n\
         a, b = socket.socketpair(); a.send(b'x'); print(b.recv(1))\n\
         try: socket.socket(1, 1).connect('\\0{name}'); print('connected')\n\
         except OSError as e: print(e.errno)\n"
    );
    let Some(outcome) = python(&sandbox, &program) else { return };
    let text = text(&outcome);
    assert_eq!(text.lines().filter(|l| *l == "1").count(), 9 + usize::from(text.ends_with("\n1\n")), "{text}");
    assert!(text.contains("b'x'") && !text.contains("opened") && !text.contains("connected"), "{text}");
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err());
}

/// `EPERM` by the filter; a call that the kernel would refuse for another reason says so with another number.
#[cfg(target_arch = "x86_64")]
#[test]
fn calls_are_refused() {
    let Some(sandbox) = sandbox(quick()) else { return };
    // ptrace, process_vm_readv, mount, unshare, setns, keyctl, bpf, perf_event_open, userfaultfd, io_uring_setup, kexec_load, chroot;
    // ptrace and unshare by the numbers of x32; clone with a new user name space; clone3, which is not there.
    let program = "import ctypes, errno\n\
        call = ctypes.CDLL(None, use_errno=True).syscall\n\
        X = 0x40000000\n\
        def says(*a):\n\
        \x20   ctypes.set_errno(0); r = call(*a); return errno.errorcode.get(ctypes.get_errno(), 'none') if r == -1 else r\n\
        for n in [101, 310, 165, 272, 308, 250, 321, 298, 323, 425, 246, 161, 101 | X, 272 | X, 521 | X]:\n\
        \x20   print(n, says(n, 0, 0, 0, 0, 0))\n\
        print('clone', says(56, 0x10000000 | 17, 0, 0, 0, 0))\n\
        print('ioctl', says(16, 0, 0x5412, 0))\n\
        print('clone3', says(435, 0, 0))\n";
    let Some(outcome) = python(&sandbox, program) else { return };
    let text = text(&outcome);
    assert_eq!(text.lines().filter(|l| l.ends_with(" EPERM")).count(), 17, "{text}");
    assert!(text.ends_with("clone3 ENOSYS\n"), "{text}");
}

#[test]
fn a_fork_bomb_stops_at_the_limit() {
    let Some(sandbox) = sandbox(quick()) else { return };
    let workspace = Workspace::empty().unwrap();
    let (_, text) = sh(&sandbox, &workspace, "i=0; while [ $i -lt 100 ]; do sleep 30 & i=$((i+1)); done; echo all");
    assert!(!text.contains("all") && text.to_lowercase().contains("fork"), "{text}");
    let bomb = sandbox.with(Limits { time: Duration::from_secs(1), ..quick() }, Vec::new());
    let began = Instant::now();
    bomb.run(&workspace, ["bash", "-c", "f() { f | f & }; f; sleep 30"], &[]).unwrap();
    assert!(began.elapsed() < Duration::from_secs(10));
    assert_eq!(sh(&sandbox, &workspace, "echo alive"), (Some(0), "alive\n".to_owned()));
}

#[test]
fn memory_is_bounded_for_one_process_and_for_all() {
    let Some(sandbox) = sandbox(Limits { memory: 256 << 20, ..quick() }) else { return };
    let workspace = Workspace::empty().unwrap();
    let (status, text) = sh(&sandbox, &workspace, "head -c 2000000000 /dev/zero | tail > /dev/null; echo ended");
    assert!(status == Some(0) && text.contains("memory exhausted") && text.contains("ended"), "{text}");
    let many = sandbox.with(Limits { total: 300 << 20, ..quick() }, Vec::new());
    let script = "for i in 1 2 3 4 5 6; do (head -c 150000000 /dev/zero | tail; sleep 15) & done; wait; echo ended";
    let outcome = many.run(&workspace, ["sh", "-c", script], &[]).unwrap();
    assert_eq!((outcome.stopped, outcome.status), (Some(Stopped::Memory), None));
}

#[test]
fn files_folders_output_and_time_are_bounded() {
    let Some(sandbox) = sandbox(Limits { file: 1 << 20, output: 1000, ..quick() }) else { return };
    let workspace = Workspace::empty().unwrap();
    let began = Instant::now();
    let (_, text) = sh(&sandbox, &workspace, "head -c 3000000 /dev/zero > big; wc -c < big");
    assert!(text.contains("1048576\n"), "{text}");
    for folder in ["/tmp", "/work", "/dev/shm"] {
        let script = format!("cd {folder} && for i in $(seq 12); do head -c 1000000 /dev/zero > $i || exit 9; done");
        let (status, text) = sh(&sandbox, &workspace, &script);
        assert!(status == Some(9) && text.contains("No space left"), "{folder}: {text}");
    }
    let (status, text) = sh(&sandbox, &workspace, "cd /tmp; seq 200000 | xargs touch");
    assert!(status != Some(0) && text.contains("No space left"), "as many empty files as one likes: {text}");
    let loud = sandbox.run(&workspace, ["sh", "-c", "yes | head -c 100000; echo the end"], &[]).unwrap();
    assert!(loud.stdout.len() == 1000 && loud.stdout.ends_with(b"the end\n"));
    let short = sandbox.with(Limits { time: Duration::from_secs(1), ..sandbox.limits().clone() }, Vec::new());
    let late = short.run(&workspace, ["sh", "-c", "setsid sleep 1000 & echo first; sleep 1000"], &[]).unwrap();
    assert!(late.stopped == Some(Stopped::Time) && late.status.is_none() && late.stdout == b"first\n");
    let endless = short.run(&workspace, ["yes"], &[]).unwrap();
    assert!(endless.stopped == Some(Stopped::Time) && endless.stdout.len() == 1000);
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

#[test]
fn folders_are_seen_wherever_they_are_and_cannot_be_written() {
    // Its place is below `/tmp`, where a command has a folder of its own.
    let shown = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir_in("/tmp").unwrap();
    fs::write(shown.path().join("a"), "shown\n").unwrap();
    let Some(sandbox) = sandbox_with(quick(), vec![shown.path().to_owned()]) else { return };
    let script = format!("cd {0} && cat a; echo x > a; echo x > b; rm -f a; rmdir {0}; cat a", shown.path().display());
    let (status, text) = sh(&sandbox, &Workspace::empty().unwrap(), &script);
    assert!(status == Some(0) && text.matches("shown\n").count() == 2, "{text}");
    assert_eq!(fs::read_to_string(shown.path().join("a")).unwrap(), "shown\n");
}

#[test]
fn where_nothing_can_be_confined_nothing_runs() {
    let Some(sandbox) = sandbox(quick()) else { return };
    let workspace = Workspace::empty().unwrap();
    let broken = sandbox.with(quick(), vec![PathBuf::from("/no/such/folder")]);
    let error = broken.run(&workspace, ["sh", "-c", "echo ran >&2"], &[]).unwrap_err().to_string();
    assert!(error.contains("cannot be confined") && error.contains("/no/such/folder") && !error.contains("ran\n"), "{error}");
    let error = Sandbox::with_helper(quick(), Vec::new(), &PathBuf::from("/bin/true")).unwrap_err().to_string();
    assert!(error.contains("cannot be confined") && error.contains("user name spaces"), "{error}");
}
