//! Commands that try to get out.

use super::*;

/// None, with a word about it, where nothing can be confined; with SORFT_STRICT set that is a failure.
fn sandbox(limits: Limits) -> Option<Sandbox> {
    match Sandbox::new(limits, Vec::new()) {
        Ok(sandbox) => Some(sandbox),
        Err(e) if std::env::var_os("SORFT_STRICT").is_none() => {
            eprintln!("skipped: {e}");
            None
        }
        Err(e) => panic!("{e}"),
    }
}

fn quick() -> Limits {
    Limits { time: Duration::from_secs(20), memory: 512 << 20, processes: 32, temporary: 8 << 20, ..Limits::default() }
}

fn sh(sandbox: &Sandbox, workspace: &Workspace, script: &str) -> (Option<i32>, String) {
    let outcome = sandbox.run(workspace, ["sh", "-c", script], &[]).unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&outcome.stdout), String::from_utf8_lossy(&outcome.stderr));
    (outcome.status, text)
}

#[test]
fn a_command_works_on_its_copy() {
    let Some(sandbox) = sandbox(quick()) else { return };
    let original = tempfile::tempdir().unwrap();
    fs::create_dir(original.path().join("d")).unwrap();
    fs::write(original.path().join("d/a.txt"), "one\n").unwrap();
    let workspace = Workspace::copy_of(original.path()).unwrap();
    workspace.write("e/b.txt", "two\n").unwrap();
    let (status, text) = sh(&sandbox, &workspace, "cat d/a.txt e/b.txt; echo three > d/a.txt; echo x > /tmp/x && cat /tmp/x; exit 7");
    assert_eq!((status, text.as_str()), (Some(7), "one\ntwo\nx\n"));
    assert_eq!(fs::read_to_string(workspace.tree().join("d/a.txt")).unwrap(), "three\n");
    assert_eq!(fs::read_to_string(original.path().join("d/a.txt")).unwrap(), "one\n");
    assert!(workspace.write("../c", "").is_err() && workspace.write("/c", "").is_err());
}

#[test]
fn nothing_outside_can_be_written_or_seen() {
    let Some(sandbox) = sandbox(quick()) else { return };
    let secret = tempfile::tempdir().unwrap();
    fs::write(secret.path().join("key"), "sesame").unwrap();
    let workspace = Workspace::empty().unwrap();
    let path = secret.path().join("key");
    let script = format!(
        "cat {0}; cat /proc/1/root{0}; ls /home /root /old/root; for d in / /usr /etc /bin /dev /usr/bin; do touch $d/new; done; \
         mount -o remount,rw /usr; mount -t tmpfs none /usr; unshare --user true; mknod sda b 8 0; chroot / true; true",
        path.display()
    );
    let (status, text) = sh(&sandbox, &workspace, &script);
    assert_eq!(status, Some(0));
    assert!(!text.contains("sesame"), "{text}");
    assert_eq!(text.matches("touch: ").count(), 6, "{text}");
    assert!(text.contains("mount: ") && text.contains("unshare: ") && text.contains("mknod: ") && text.contains("chroot: "), "{text}");
    symlink(&path, workspace.tree().join("link")).unwrap();
    assert_eq!(sh(&sandbox, &workspace, "cat link; echo open > link").0, Some(2), "a link out of the tree leads nowhere");
    assert!(workspace.write("link", "open").is_err());
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
fn a_fork_bomb_stops_at_the_limit() {
    let Some(sandbox) = sandbox(quick()) else { return };
    let workspace = Workspace::empty().unwrap();
    let (_, text) = sh(&sandbox, &workspace, "i=0; while [ $i -lt 100 ]; do sleep 30 & i=$((i+1)); done; echo all");
    assert!(!text.contains("all") && text.to_lowercase().contains("fork"), "{text}");
    let bomb = Sandbox { limits: Limits { time: Duration::from_secs(1), ..quick() }, ..sandbox.clone() };
    let began = Instant::now();
    bomb.run(&workspace, ["bash", "-c", "f() { f | f & }; f; sleep 30"], &[]).unwrap();
    assert!(began.elapsed() < Duration::from_secs(10));
    assert_eq!(sh(&sandbox, &workspace, "echo alive"), (Some(0), "alive\n".to_owned()));
}

#[test]
fn memory_files_output_and_time_are_bounded() {
    let Some(sandbox) = sandbox(Limits { file: 1 << 20, output: 1000, memory: 128 << 20, ..quick() }) else { return };
    let workspace = Workspace::empty().unwrap();
    let began = Instant::now();
    let (status, text) = sh(&sandbox, &workspace, "head -c 2000000000 /dev/zero | tail > /dev/null; echo ended");
    assert!(status == Some(0) && text.contains("memory exhausted") && text.contains("ended"), "{text}");
    assert_ne!(sh(&sandbox, &workspace, "head -c 3000000 /dev/zero > big").0, Some(0));
    assert_eq!(fs::metadata(workspace.tree().join("big")).unwrap().len(), 1 << 20);
    assert_ne!(sh(&sandbox, &workspace, "for i in 1 2 3 4 5 6 7 8 9; do head -c 1000000 /dev/zero > /tmp/$i || exit 1; done").0, Some(0));
    assert_eq!(sandbox.run(&workspace, ["sh", "-c", "yes | head -c 100000"], &[]).unwrap().stdout.len(), 1000);
    let short = Sandbox { limits: Limits { time: Duration::from_secs(1), ..sandbox.limits.clone() }, ..sandbox.clone() };
    let late = short.run(&workspace, ["sh", "-c", "setsid sleep 1000 & echo first; sleep 1000"], &[]).unwrap();
    assert!(late.timed_out && late.status.is_none() && late.stdout == b"first\n");
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

#[test]
fn where_nothing_can_be_confined_nothing_runs() {
    let Some(mut sandbox) = sandbox(quick()) else { return };
    let workspace = Workspace::empty().unwrap();
    sandbox.read_only = vec![PathBuf::from("/no/such/folder")];
    let error = sandbox.run(&workspace, ["touch", "ran"], &[]).unwrap_err().to_string();
    assert!(error.contains("cannot be confined") && error.contains("/no/such/folder"), "{error}");
    assert!(!workspace.tree().join("ran").exists());
}
