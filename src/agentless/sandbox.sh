#!/bin/sh
# Runs inside fresh user, mount, network, process, IPC and host name spaces, as their root. Builds a file system of which the system's
# folders are read-only, goes into it, gives up every privilege, and runs the command.
# Arguments: EMPTY TREE TMP_BYTES MEMORY_BYTES PROCESSES CPU_SECONDS FILE_BYTES READY N READ_ONLY... COMMAND...
set -eu
root=$1 tree=$2 tmp=$3 memory=$4 processes=$5 cpu=$6 size=$7 ready=$8 n=$9
shift 9
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
while [ "$n" -gt 0 ]; do show "$1"; shift; n=$((n - 1)); done
mkdir "$root/proc" "$root/dev" "$root/tmp" "$root/work" "$root/old"
for d in null zero full random urandom; do : > "$root/dev/$d"; mount --bind "/dev/$d" "$root/dev/$d"; done
mount -t tmpfs -o "size=$tmp,mode=1777,nosuid,nodev" none "$root/tmp"
mount --bind "$tree" "$root/work"
mount -o remount,bind,nosuid,nodev "$root/work"
mount -t proc -o nosuid,nodev,noexec none "$root/proc"
echo 0 > "$root/proc/sys/user/max_user_namespaces"
mount -o remount,ro,nosuid,nodev none "$root"
cd "$root"
pivot_root . old
umount -l /old
cd /work
# Whoever started this knows by it that all of the above has worked.
echo "$ready" >&2
unset OLDPWD PWD
exec prlimit --as="$memory" --nproc="$processes" --cpu="$cpu" --fsize="$size" --core=0 --nofile=1024 \
    setpriv --no-new-privs --bounding-set=-all --inh-caps=-all --ambient-caps=-all -- "$@"
