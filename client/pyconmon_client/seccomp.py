"""The default seccomp profile for bundles: an allow-list of system calls for ordinary programs.

Callers rely on `profile()`, the `linux.seccomp` object of an OCI config, and on `supported()`,
which asks the runtime whether it was built with seccomp. Everything not named here fails with
EPERM, as if the caller lacked the privilege; calls newer than the profile fail with ENOSYS (runc
adds that), so that libraries fall back. Out of scope: profiles per program, and 32-bit programs on
64-bit machines (only the native ABI is let in).
"""

from __future__ import annotations

import errno
import functools
import json
import os
import platform
import subprocess
from typing import Any

# Grouped by what they touch; the order has no meaning. Left out on purpose: everything that mounts,
# changes namespaces, loads code into the kernel, reads other processes, sets the clock or uses the
# host's keyrings, and the big, bug-rich interfaces that a sandboxed program has no need of (bpf,
# io_uring, perf, userfaultfd).
_ALLOWED = """
read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 close close_range lseek
_llseek open openat openat2 creat dup dup2 dup3 pipe pipe2 fcntl fcntl64 ioctl fsync fdatasync
sync syncfs sync_file_range sync_file_range2 fallocate fadvise64 fadvise64_64 readahead truncate
truncate64 ftruncate ftruncate64 sendfile sendfile64 splice tee vmsplice copy_file_range flock
memfd_create memfd_secret

stat stat64 fstat fstat64 lstat lstat64 fstatat64 newfstatat statx statfs statfs64 fstatfs
fstatfs64 access faccessat faccessat2 getdents getdents64 getcwd chdir fchdir mkdir mkdirat rmdir
rename renameat renameat2 link linkat unlink unlinkat symlink symlinkat readlink readlinkat chmod
fchmod fchmodat fchmodat2 chown chown32 fchown fchown32 fchownat lchown lchown32 umask utime
utimes utimensat utimensat_time64 futimesat mknod mknodat chroot getxattr lgetxattr fgetxattr
listxattr llistxattr flistxattr setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr
inotify_init inotify_init1 inotify_add_watch inotify_rm_watch name_to_handle_at

poll ppoll ppoll_time64 select _newselect pselect6 pselect6_time64 epoll_create epoll_create1
epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2 signalfd signalfd4 timerfd_create
timerfd_settime timerfd_settime64 timerfd_gettime timerfd_gettime64 io_setup io_destroy io_submit
io_cancel io_getevents io_pgetevents io_pgetevents_time64

mmap mmap2 munmap mprotect mremap msync mincore madvise brk mlock mlock2 munlock mlockall
munlockall pkey_alloc pkey_free pkey_mprotect membarrier remap_file_pages get_mempolicy
set_mempolicy mbind

fork vfork execve execveat exit exit_group wait4 waitid waitpid getpid getppid gettid getpgid
getpgrp setpgid getsid setsid set_tid_address set_robust_list get_robust_list rseq futex
futex_time64 futex_waitv futex_wake futex_wait futex_requeue sched_yield sched_getaffinity
sched_setaffinity sched_getparam sched_setparam sched_getscheduler sched_setscheduler
sched_getattr sched_setattr sched_get_priority_max sched_get_priority_min sched_rr_get_interval
sched_rr_get_interval_time64 getpriority setpriority ioprio_get ioprio_set getcpu prctl arch_prctl
set_thread_area get_thread_area modify_ldt seccomp pidfd_open pidfd_send_signal
landlock_create_ruleset landlock_add_rule landlock_restrict_self

kill tkill tgkill rt_sigaction rt_sigprocmask rt_sigpending rt_sigqueueinfo rt_tgsigqueueinfo
rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 sigaltstack sigreturn
restart_syscall pause

getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32 getresuid getresuid32
getresgid getresgid32 getgroups getgroups32 setuid setuid32 setgid setgid32 setreuid setreuid32
setregid setregid32 setresuid setresuid32 setresgid setresgid32 setgroups setgroups32 setfsuid
setfsuid32 setfsgid setfsgid32 capget capset getrlimit ugetrlimit setrlimit prlimit64 getrusage
uname sysinfo times

time gettimeofday clock_gettime clock_gettime64 clock_getres clock_getres_time64 clock_nanosleep
clock_nanosleep_time64 nanosleep alarm getitimer setitimer timer_create timer_settime
timer_settime64 timer_gettime timer_gettime64 timer_getoverrun timer_delete getrandom

socketpair bind listen accept accept4 connect getsockname getpeername getsockopt setsockopt
shutdown send sendto sendmsg sendmmsg recv recvfrom recvmsg recvmmsg recvmmsg_time64 shmget shmat
shmctl shmdt semget semop semtimedop semtimedop_time64 semctl msgget msgsnd msgrcv msgctl ipc
mq_open mq_unlink mq_timedsend mq_timedsend_time64 mq_timedreceive mq_timedreceive_time64
mq_notify mq_getsetattr
"""

# New mount, cgroup, uts, ipc, user, pid and network namespaces, as flags of clone(2).
_NAMESPACE_FLAGS = 0x7E020000
# AF_UNIX, AF_INET, AF_INET6, AF_NETLINK. The others reach drivers, the hypervisor (vsock) or the
# crypto API.
_SOCKET_FAMILIES = (1, 2, 10, 16)
# PER_LINUX, PER_LINUX32, each with UNAME26 as well, and the query.
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)

_ARCHITECTURES = {
    "x86_64": "SCMP_ARCH_X86_64",
    "aarch64": "SCMP_ARCH_AARCH64",
    "armv7l": "SCMP_ARCH_ARM",
    "i686": "SCMP_ARCH_X86",
    "ppc64le": "SCMP_ARCH_PPC64LE",
    "s390x": "SCMP_ARCH_S390X",
}


def profile() -> dict[str, Any]:
    """The profile as the `linux.seccomp` object of the runtime specification, for this machine."""

    def rule(names: list[str], **more: Any) -> dict[str, Any]:
        return {"names": names, "action": "SCMP_ACT_ALLOW", **more}

    def compare(index: int, value: int) -> list[dict[str, Any]]:
        return [{"index": index, "value": value, "op": "SCMP_CMP_EQ"}]

    # s390x swaps the first two arguments of clone.
    flags_index = 1 if platform.machine() == "s390x" else 0
    no_namespaces = {
        "index": flags_index,
        "value": _NAMESPACE_FLAGS,
        "valueTwo": 0,
        "op": "SCMP_CMP_MASKED_EQ",
    }
    rules = [
        rule(sorted(set(_ALLOWED.split()))),
        rule(["clone"], args=[no_namespaces]),
        # Its flags are in memory, where a filter can't look. ENOSYS makes every libc use clone
        # instead.
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS},
        *(rule(["socket"], args=compare(0, family)) for family in _SOCKET_FAMILIES),
        *(rule(["personality"], args=compare(0, value)) for value in _PERSONALITIES),
    ]
    result: dict[str, Any] = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.EPERM,
        "syscalls": rules,
    }
    architecture = _ARCHITECTURES.get(platform.machine())
    if architecture is not None:
        result["architectures"] = [architecture]
    return result


def supported(runtime: str) -> bool:
    """Whether the OCI runtime (a path or a name on PATH) can apply seccomp profiles.

    Source: `runtime features` (runc 1.1, crun 1.8 and later), else the text of `runtime --version`.
    False as well when the runtime can't be run at all, as starting a container then says so better.
    """
    try:
        status = os.stat(runtime)
        version = (status.st_ino, status.st_mtime_ns)
    except OSError:
        version = (0, 0)
    return _ask(runtime, version)


@functools.lru_cache(maxsize=16)
def _ask(runtime: str, _version: tuple[int, int]) -> bool:
    features = _output(runtime, "features")
    try:
        return bool(json.loads(features)["linux"]["seccomp"]["enabled"])
    except (ValueError, KeyError, TypeError):
        text = _output(runtime, "--version")
        return b"libseccomp" in text or b"+SECCOMP" in text


def _output(runtime: str, word: str) -> bytes:
    try:
        done = subprocess.run(
            [runtime, word],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return done.stdout if done.returncode == 0 else b""
