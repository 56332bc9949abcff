"""The command lines the client uses: pure functions, strings in, lists out.

Outsiders rely on the classic forms to be word for word those of CRI-O's client of January 2017.
The modern forms are those of conmon 2.x, API version 1. Nothing here looks at the system.
"""

from __future__ import annotations

from collections.abc import Sequence


def classic_create(
    name: str, runtime: str, bundle: str, *, systemd_cgroup: bool = False, terminal: bool = False
) -> list[str]:
    argv = ["-s"] if systemd_cgroup else []
    argv += ["-c", name, "-r", runtime, "-b", bundle, "-p", f"{bundle}/pidfile"]
    return [*argv, "-t"] if terminal else argv


def classic_exec(
    name: str, runtime: str, pidfile: str, command: Sequence[str], *, terminal: bool = False
) -> list[str]:
    argv = ["-c", name, "-r", runtime, "-p", pidfile, "-e"]
    if terminal:
        argv.append("-t")
    return [*argv, *command]


def modern_create(
    name: str,
    runtime: str,
    bundle: str,
    *,
    cuuid: str,
    log: str,
    exit_dir: str = "",
    systemd_cgroup: bool = False,
    terminal: bool = False,
    stdin: bool = False,
    leave_stdin_open: bool = False,
    extra: Sequence[str] = (),
) -> list[str]:
    """`log` is a value for --log-path, such as "k8s-file:/path", "passthrough" or "none"."""
    argv = ["--api-version", "1", "-c", name, "-u", cuuid, "-n", name, "-r", runtime, "-b", bundle]
    argv += ["-p", f"{bundle}/pidfile", "-P", f"{bundle}/conmon.pid", "--persist-dir", bundle]
    if exit_dir:
        argv += ["--exit-dir", exit_dir]
    argv += ["--full-attach", "-l", log]
    if systemd_cgroup:
        argv.append("-s")
    if terminal:
        argv.append("-t")
    if stdin:
        argv.append("-i")
    if leave_stdin_open:
        argv.append("--leave-stdin-open")
    return [*argv, *extra]


def modern_exec(
    name: str,
    runtime: str,
    pidfile: str,
    process_spec: str,
    *,
    cuuid: str,
    log: str = "passthrough",
    session_dir: str = "",
    terminal: bool = False,
    stdin: bool = False,
    runtime_opts: Sequence[str] = (),
) -> list[str]:
    """With `session_dir`, attached through a socket there; else on the monitor's own stdio."""
    argv = ["--api-version", "1", "-c", name, "-u", cuuid, "-n", name, "-r", runtime]
    if session_dir:
        argv += ["-b", session_dir, "--full-attach", "--exec-attach"]
    argv += ["-p", pidfile, "--sync", "-e", "--exec-process-spec", process_spec, "-l", log]
    if terminal:
        argv.append("-t")
    if stdin:
        argv.append("-i")
    for opt in runtime_opts:
        argv += ["--runtime-opt", opt]
    return argv


def runtime_version(runtime: str) -> list[str]:
    return [runtime, "-v"]


def runtime_start(runtime: str, name: str) -> list[str]:
    return [runtime, "start", name]


def runtime_kill(runtime: str, name: str, signal: str) -> list[str]:
    return [runtime, "kill", name, signal]


def runtime_delete(runtime: str, name: str, *, force: bool = False) -> list[str]:
    return [runtime, "delete", *(["--force"] if force else []), name]


def runtime_state(runtime: str, name: str) -> list[str]:
    return [runtime, "state", name]
