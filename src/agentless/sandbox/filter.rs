//! The filter of system calls, and Landlock's rules: what a confined command may not even ask the kernel for.
//!
//! The filter refuses, it does not list what is allowed: an interpreter and its libraries use a few hundred calls, and a list of those
//! would break with the next C library. What is refused is what no test of a library needs and what kernels have been broken by.

use std::collections::BTreeMap;
use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetStatus, Scope,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch, apply_filter,
};

/// Refused whatever the arguments: other processes, mounts, name spaces, keys, programs in the kernel, asynchronous calls that pass by
/// filters, modules, clocks, and the machine itself.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_lookup_dcookie,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    libc::SYS_mbind,
    libc::SYS_set_mempolicy,
];

/// Refused too on x86-64: ports, segments, the second way to load a kernel.
#[cfg(target_arch = "x86_64")]
const OF_THE_MACHINE: &[libc::c_long] = &[libc::SYS_ioperm, libc::SYS_iopl, libc::SYS_modify_ldt, libc::SYS_kexec_file_load];
#[cfg(not(target_arch = "x86_64"))]
const OF_THE_MACHINE: &[libc::c_long] = &[];

/// `clone`'s flags that make name spaces.
const NAME_SPACES: &[libc::c_int] = &[
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

/// The `TIOCSTI` and `TIOCLINUX` requests, which type into a terminal.
const TYPING: [u64; 2] = [0x5412, 0x541C];

/// Set in the numbers of x86-64's calls with 32-bit pointers, which reach the same kernel functions.
#[cfg(target_arch = "x86_64")]
const X32: i64 = 0x4000_0000;

/// x32's own numbers (`ptrace`, `process_vm_readv`, `kexec_load`, ... once more).
#[cfg(target_arch = "x86_64")]
const X32_ALONE: std::ops::RangeInclusive<i64> = 512..=547;

/// Installs the filter for this thread and all that comes from it.
///
/// # Errors
///
/// In words: the kernel has no filters, or the processor is not known.
pub(super) fn refuse_calls() -> Result<(), String> {
    let failed = |e: &dyn std::fmt::Display| format!("no filter of system calls: {e}");
    // `clone3` has its flags in memory, where a filter cannot look. A C library that is told that it is not there takes `clone`.
    let missing = SeccompAction::Errno(libc::ENOSYS as u32);
    let clone3 = program(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), missing).map_err(|e| failed(&e))?;
    let refused = program(rules().map_err(|e| failed(&e))?, SeccompAction::Errno(libc::EPERM as u32)).map_err(|e| failed(&e))?;
    apply_filter(&clone3).and_then(|()| apply_filter(&refused)).map_err(|e| failed(&e))
}

fn program(rules: BTreeMap<i64, Vec<SeccompRule>>, action: SeccompAction) -> Result<BpfProgram, seccompiler::BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, SeccompAction::Allow, action, arch)?.try_into()
}

/// What is refused: by number, and for some by their arguments.
fn rules() -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let rule = |argument, op, value| -> Result<SeccompRule, seccompiler::BackendError> {
        SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value)?])
    };
    let mut out: BTreeMap<i64, Vec<SeccompRule>> = REFUSED.iter().chain(OF_THE_MACHINE).map(|&call| (call, Vec::new())).collect();
    // Sockets between processes of the sandbox are all that is left: no network of any kind, no netlink, no kernel crypto.
    let not_unix = |call| Ok::<_, seccompiler::BackendError>((call, vec![rule(0, SeccompCmpOp::Ne, libc::AF_UNIX as u64)?]));
    out.extend([not_unix(libc::SYS_socket)?, not_unix(libc::SYS_socketpair)?]);
    let flag = |&flag: &libc::c_int| rule(0, SeccompCmpOp::MaskedEq(flag as u32 as u64), flag as u32 as u64);
    out.insert(libc::SYS_clone, NAME_SPACES.iter().map(flag).collect::<Result<_, _>>()?);
    out.insert(libc::SYS_ioctl, TYPING.iter().map(|&request| rule(1, SeccompCmpOp::Eq, request)).collect::<Result<_, _>>()?);
    #[cfg(target_arch = "x86_64")]
    {
        let x32: Vec<_> = out.keys().map(|call| call | X32).chain([libc::SYS_clone3 | X32]).collect();
        out.extend(x32.into_iter().chain(X32_ALONE.map(|call| call | X32)).map(|call| (call, Vec::new())));
    }
    Ok(out)
}

/// Restricts this thread and all that comes from it to reading, and to writing below `writable`; no TCP, no abstract sockets and no signals
/// out of the sandbox. Says how much of it this kernel can do: `full`, `partly` or `none`. All of it is refused by name spaces already.
///
/// # Errors
///
/// In words: the kernel offers Landlock and it failed.
pub(super) fn restrict(writable: &[&str]) -> Result<&'static str, String> {
    const NEWEST: ABI = ABI::V6;
    let rules = || -> Result<RulesetStatus, landlock::RulesetError> {
        let (all, read, file) = (AccessFs::from_all(NEWEST), AccessFs::from_read(NEWEST), AccessFs::from_file(NEWEST));
        let set = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(all)?
            .handle_access(AccessNet::from_all(NEWEST))?
            .scope(Scope::from_all(NEWEST))?;
        let mut set = set.create()?;
        let writable = writable.iter().map(|&path| (path, if Path::new(path).is_dir() { all } else { file }));
        for (path, access) in [("/", read)].into_iter().chain(writable) {
            if let Ok(path) = PathFd::new(path) {
                set = set.add_rule(PathBeneath::new(path, access))?;
            }
        }
        Ok(set.restrict_self()?.ruleset)
    };
    match rules().map_err(|e| format!("Landlock: {e}"))? {
        RulesetStatus::FullyEnforced => Ok("full"),
        RulesetStatus::PartiallyEnforced => Ok("partly"),
        RulesetStatus::NotEnforced => Ok("none"),
    }
}
