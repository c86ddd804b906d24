#!/bin/sh
# Runs inside fresh user, mount, network, process, IPC and host name spaces, as their root. Builds a file system of which the system's
# folders are read-only and the rest is in memory and bounded, goes into it, gives up every privilege, and hands over to the program
# that installs the filters and runs the command (confine.rs).
# Arguments: EMPTY TREE TMP_BYTES TREE_BYTES HELPER N READ_ONLY... ARGUMENTS_OF_THE_HELPER...
set -eu
root=$1 tree=$2 tmp=$3 disk=$4 helper=$5 n=$6
shift 6
mount --make-rprivate /
mount -t tmpfs -o size=16m,mode=755,nosuid,nodev none "$root"
show() {
    mkdir -p "$root$1"
    mount --rbind "$1" "$root$1"
    # What is mounted below it comes along, and has to become read-only by itself.
    cut -d ' ' -f 5 /proc/self/mountinfo | while read -r at; do
        case $at in "$root$1" | "$root$1"/*) mount -o remount,bind,ro,nosuid,nodev "$at" ;; esac
    done
}
for d in /bin /sbin /lib /lib32 /lib64 /libx32; do
    if [ -L "$d" ]; then ln -s "$(readlink "$d")" "$root$d"; elif [ -d "$d" ]; then show "$d"; fi
done
show /usr
show /etc
mkdir "$root/proc" "$root/dev" "$root/tmp" "$root/work" "$root/old"
mount -t tmpfs -o "size=$tmp,nr_inodes=100k,mode=1777,nosuid,nodev" none "$root/tmp"
mount -t tmpfs -o "size=$disk,nr_inodes=400k,mode=755,nosuid,nodev" none "$root/work"
# After those, since an environment may lie below a folder of these names.
while [ "$n" -gt 0 ]; do show "$1"; shift; n=$((n - 1)); done
for d in null zero full random urandom; do : > "$root/dev/$d"; mount --bind "/dev/$d" "$root/dev/$d"; done
ln -s /proc/self/fd "$root/dev/fd"
for d in 0:stdin 1:stdout 2:stderr; do ln -s "fd/${d%:*}" "$root/dev/${d#*:}"; done
# Semaphores of processes live there.
ln -s /tmp "$root/dev/shm"
cp -RP --preserve=mode,timestamps,links "$tree/." "$root/work"
: > "$root/.confine"
mount --bind "$helper" "$root/.confine"
mount -o remount,bind,ro,nosuid,nodev "$root/.confine"
mount -t proc -o nosuid,nodev,noexec none "$root/proc"
echo 0 > "$root/proc/sys/user/max_user_namespaces"
mount -o remount,ro,nosuid,nodev none "$root"
cd "$root"
pivot_root . old
umount -l /old
cd /work
unset OLDPWD PWD
exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all --ambient-caps=-all -- /.confine confine "$@"
