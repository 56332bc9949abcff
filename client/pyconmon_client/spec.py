"""The OCI runtime config as data: values in, a checked `config.json` object out; nothing is written
here.

`build()` serves `Bundle.from_rootfs`, where its parameters are described; each `check_*` function
turns one value into its OCI form or raises InvalidArgumentError with one line: which value, what it
was, what would be right.
"""

from __future__ import annotations

import math
import os
import re
import resource
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import seccomp as seccomp_profile
from .errors import BundleError, InvalidArgumentError
from .mounts import Mount, check_mounts, standard_mounts
from .values import check_absolute, check_hostname, check_size, check_text

VERSION = "1.0.2"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_PIDS = 1024
DEFAULT_CAPABILITIES = ("CAP_KILL", "CAP_NET_BIND_SERVICE")

# What tells a program about the host, or lets root in the container change it.
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_CAPABILITY = re.compile(r"CAP_[A-Z_]+", re.ASCII)
_CPU_PERIOD = 100_000  # microseconds; the kernel's own default
_SMALLEST_MEMORY = 512 * 1024  # below it not even the runtime's start-up fits


def build(
    root: str,
    *,
    args: Sequence[str],
    env: Mapping[str, str] | Iterable[str] | None,
    mounts: Iterable[Mount | str | Mapping[str, Any]],
    memory: int | str | None,
    cpus: float | None,
    pids: int | None,
    read_only: bool,
    user: int | str | tuple[int, int],
    rootless: bool,
    terminal: bool,
    cwd: str,
    hostname: str,
    network: bool,
    capabilities: Iterable[str] | None,
    seccomp: bool | Mapping[str, Any] | None,
    runtime: str,
) -> dict[str, Any]:
    """The config.json object for `root`, an absolute path; see `Bundle.from_rootfs` for the
    parameters.
    """
    uid, gid = check_user(user)
    extra = check_mounts(mounts)
    process: dict[str, Any] = {
        "terminal": bool(terminal),
        "user": {"uid": uid, "gid": gid},
        "args": check_args(args),
        "env": check_env(env, terminal=terminal),
        "cwd": check_absolute("cwd", cwd),
        "noNewPrivileges": True,
        "capabilities": check_capabilities(capabilities, uid),
        "rlimits": _rlimits(),
    }
    linux: dict[str, Any] = {
        "namespaces": [{"type": kind} for kind in _namespaces(network=network, rootless=rootless)],
        "maskedPaths": list(MASKED_PATHS),
        "readonlyPaths": list(READONLY_PATHS),
        "resources": check_resources(memory, cpus, pids, rootless=rootless),
    }
    if rootless:
        linux["uidMappings"] = [{"containerID": uid, "hostID": os.geteuid(), "size": 1}]
        linux["gidMappings"] = [{"containerID": gid, "hostID": os.getegid(), "size": 1}]
    profile = _seccomp(seccomp, runtime)
    if profile is not None:
        linux["seccomp"] = profile
    standard = standard_mounts(root, network=network, rootless=rootless, tmp=read_only)
    taken = {os.path.normpath(mount["destination"]) for mount in extra}
    return {
        "ociVersion": VERSION,
        "root": {"path": root, "readonly": bool(read_only)},
        "hostname": check_hostname(hostname),
        "process": process,
        "mounts": [mount for mount in standard if mount["destination"] not in taken] + extra,
        "linux": linux,
    }


def check_args(args: Sequence[str], what: str = "args") -> list[str]:
    if isinstance(args, (str, bytes)):
        raise InvalidArgumentError(
            f"{what}: {args!r} is one word; give a list such as ['sh', '-c', 'echo hi']"
        )
    words = list(args)
    if not words or words[0] == "":
        raise InvalidArgumentError(f"{what}: no command; give at least the program's name")
    for word in words:
        check_text(what, word)
    return words


def check_env(env: Mapping[str, str] | Iterable[str] | None, *, terminal: bool) -> list[str]:
    values = {"PATH": DEFAULT_PATH, "HOME": "/"}
    if terminal:
        values["TERM"] = "xterm"
    values |= check_variables(env)
    return [f"{name}={value}" for name, value in values.items()]


def check_variables(env: Mapping[str, str] | Iterable[str] | None) -> dict[str, str]:
    if isinstance(env, (str, bytes)):
        raise InvalidArgumentError(
            f"env: {env!r} is one word; give a mapping or a list of NAME=value"
        )
    values: dict[str, str] = {}
    if isinstance(env, Mapping):
        pairs: Iterable[tuple[str, str]] = env.items()
    else:
        pairs = [_pair(word) for word in env or ()]
    for name, value in pairs:
        check_text("env", name)
        check_text(f"env: {name}", value)
        if not name or "=" in name:
            raise InvalidArgumentError(
                f"env: {name!r} is not a variable's name; it must not be empty or hold '='"
            )
        values[name] = value
    return values


def _pair(word: str) -> tuple[str, str]:
    check_text("env", word)
    name, equals, value = word.partition("=")
    if not equals:
        raise InvalidArgumentError(f"env: {word!r} has no '='; give NAME=value")
    return name, value


def check_user(user: object) -> tuple[int, int]:
    wrong = (
        f"user: {user!r}; give a number, 'uid', 'uid:gid' or a pair of numbers "
        "(names are not looked up)"
    )
    if isinstance(user, str):
        parts: Sequence[object] = user.split(":")
        if not all(isinstance(part, str) and part.isascii() and part.isdigit() for part in parts):
            raise InvalidArgumentError(wrong)
        numbers = [int(str(part)) for part in parts]
    else:
        parts = user if isinstance(user, (tuple, list)) else (user,)
        numbers = [part for part in parts if isinstance(part, int) and not isinstance(part, bool)]
        if len(numbers) != len(parts):
            raise InvalidArgumentError(wrong)
    if len(numbers) == 1:
        # The user's own group, as numbers alone can tell it: root's is 0, others get one of the
        # same number.
        numbers = numbers * 2
    # 2**32 - 1 is the kernel's "no id".
    if len(numbers) != 2 or not all(0 <= number < 2**32 - 1 for number in numbers):
        raise InvalidArgumentError(wrong)
    return numbers[0], numbers[1]


def check_capabilities(names: Iterable[str] | None, uid: int) -> dict[str, list[str]]:
    if isinstance(names, str):
        raise InvalidArgumentError(
            f"capabilities: {names!r} is one word; give a list of names such as ['CAP_CHOWN']"
        )
    if names is None:
        names = DEFAULT_CAPABILITIES if uid == 0 else ()
    chosen = sorted(set(names))
    for name in chosen:
        if not isinstance(name, str) or not _CAPABILITY.fullmatch(name):
            raise InvalidArgumentError(
                f"capabilities: {name!r} is not a capability; give names such as 'CAP_CHOWN'"
            )
    # Nothing inheritable and nothing ambient: programs with file capabilities gain nothing by them.
    return {"bounding": chosen, "effective": chosen, "permitted": chosen}


def check_resources(
    memory: int | str | None, cpus: float | None, pids: int | None, *, rootless: bool
) -> dict[str, Any]:
    resources: dict[str, Any] = {}
    if not rootless:
        resources["devices"] = [
            {"allow": False, "access": "rwm"}
        ]  # the runtime adds null, zero, tty and so on
    if memory is not None:
        limit = check_size("memory", memory)
        if limit < _SMALLEST_MEMORY:
            raise InvalidArgumentError(
                f"memory: {memory!r} is too little for any program; give at least '512k'"
            )
        resources["memory"] = {"limit": limit}
        if _swap_is_accounted():
            resources["memory"]["swap"] = limit  # memory and swap together
    if cpus is not None:
        if (
            isinstance(cpus, bool)
            or not isinstance(cpus, (int, float))
            or not 0.01 <= cpus < math.inf
        ):
            raise InvalidArgumentError(
                f"cpus: {cpus!r}; give a number of at least 0.01, such as 0.5 or 2"
            )
        resources["cpu"] = {"quota": round(cpus * _CPU_PERIOD), "period": _CPU_PERIOD}
    if pids is not None and (isinstance(pids, bool) or not isinstance(pids, int) or pids < 0):
        raise InvalidArgumentError(
            f"pids: {pids!r}; give the most processes as a whole number, 0 for no limit"
        )
    if pids is None and not rootless:
        pids = DEFAULT_PIDS
    if pids:
        resources["pids"] = {"limit": pids}
    return resources


def _swap_is_accounted() -> bool:
    # With cgroup v1 the file exists only if the kernel was told to count swap; setting it fails
    # otherwise. With version 2 runtimes tolerate a kernel without swap.
    v1 = "/sys/fs/cgroup/memory"
    return not os.path.isdir(v1) or os.path.exists(f"{v1}/memory.memsw.limit_in_bytes")


def _namespaces(*, network: bool, rootless: bool) -> list[str]:
    kinds = ["pid", "ipc", "uts", "mount"]
    if not network:
        kinds.append("network")
    if os.path.exists("/proc/self/ns/cgroup"):
        kinds.append("cgroup")
    if rootless:
        kinds.append("user")
    return kinds


def _rlimits() -> list[dict[str, Any]]:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = 1024 if hard == resource.RLIM_INFINITY else min(1024, hard)
    return [
        {"type": "RLIMIT_NOFILE", "soft": files, "hard": files},
        # A core dump of an untrusted program is handled by the host's kernel.core_pattern, outside
        # the container.
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]


def _seccomp(choice: bool | Mapping[str, Any] | None, runtime: str) -> dict[str, Any] | None:
    if isinstance(choice, Mapping):
        if "defaultAction" not in choice:
            raise InvalidArgumentError(
                "seccomp: the profile has no defaultAction; give an OCI linux.seccomp object"
            )
        return dict(choice)
    if choice is False:
        return None
    if seccomp_profile.supported(runtime):
        return seccomp_profile.profile()
    if choice:
        raise BundleError(
            f"seccomp: {runtime} was built without it; give seccomp=False or another runtime"
        )
    return None
