"""Runs untrusted Python or shell code in a container, and says how it ended.

    python examples/sandbox.py --seconds 2 --memory 64m snippet.py
    echo 'print(6 * 7)' | python examples/sandbox.py -

Use it as a library by `judge()`. It needs root, an OCI runtime (runc or crun) and a monitor
(pyconmon or conmon).

What holds the code in: namespaces without network, the host's /usr read-only and nothing else of
the host, an ordinary user without capabilities, a seccomp profile, limits on time, memory (without
swap), processes, output and /tmp. What is left is the kernel: code that can break that gets out.
Where this is not enough, give `judge` a runtime that has a virtual machine or a kernel of its own
around each container.
"""

from __future__ import annotations

import argparse
import enum
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pyconmon_client import Bundle, Mount, PyconmonError, Runtime

NOBODY = 65534
COMMANDS = {
    "python": ["/usr/bin/python3", "-I", "-B", "/code/snippet"],
    "sh": ["/bin/sh", "/code/snippet"],
}
# The first process of a pid namespace can't be killed from inside, not even by itself. So that code
# ends as it would anywhere else (by abort(), say), it is the shell's child; the shell also reaps
# what it leaves behind.
AS_A_CHILD = ["/bin/sh", "-c", '"$@"; exit $?', "sh"]


class Outcome(enum.Enum):
    FINISHED = "finished"
    TIMED_OUT = "timed out"
    OUT_OF_MEMORY = "out of memory"
    KILLED = "killed"
    TOO_MUCH_OUTPUT = "too much output"


@dataclass(frozen=True)
class Verdict:
    """How the code ended: exit_code if it FINISHED, signal if it was KILLED; seconds it ran, what
    it printed.
    """

    outcome: Outcome
    exit_code: int | None
    signal: int | None
    seconds: float
    stdout: bytes
    stderr: bytes


def judge(
    code: str | bytes,
    language: str = "python",
    *,
    seconds: float = 5.0,
    memory: int | str = "128m",
    pids: int = 64,
    output: int = 1 << 20,
    disk: int | str = "16m",
    runtime: str | None = None,
    monitor: str | None = None,
) -> Verdict:
    """Runs `code` ("python" or "sh") to its end or to the first limit that it meets, and cleans up.

    output: bytes a stream (stdout and stderr). disk: the size of /tmp, the only place to write to,
    which counts as memory too. runtime, monitor: paths or names; the first of runc and crun, and of
    pyconmon and conmon, else. Raises PyconmonError if the container can't be started: that is never
    the code's doing.
    """
    runtime = runtime or _first("runc", "crun")
    containers = Runtime(runtime, "", monitor or _first("pyconmon", "conmon"))
    with tempfile.TemporaryDirectory(prefix="sandbox-") as scratch:
        snippet = Path(scratch, "snippet")
        snippet.write_bytes(code.encode() if isinstance(code, str) else code)
        snippet.chmod(0o444)
        with Bundle.from_rootfs(
            _root(Path(scratch, "root")),
            args=AS_A_CHILD + COMMANDS[language],
            env={"HOME": "/tmp", "LANG": "C.UTF-8"},
            mounts=[
                Mount.bind("/usr", "/usr"),
                Mount.bind(snippet, "/code/snippet"),
                Mount.tmpfs("/tmp", size=disk),
                Mount.tmpfs("/dev/shm", size=disk),
            ],
            memory=memory,
            cpus=1,
            pids=pids,
            user=NOBODY,
            cwd="/tmp",
            hostname="sandbox",
            runtime=runtime,
            directory=Path(scratch, "bundle"),
        ) as bundle:
            result = containers.run(bundle, timeout=seconds, max_output=output, kill_on_output=True)
    exit_code: int | None = None
    signal: int | None = None
    if result.output_exceeded or result.truncated:
        outcome = Outcome.TOO_MUCH_OUTPUT
    elif result.oom_killed and result.exit_code != 0:
        # Code that lost a child to the limit, noticed and went on to a good end has finished. This
        # comes before the time: what ran out of memory is often too busy with that to end by
        # itself.
        outcome = Outcome.OUT_OF_MEMORY
    elif result.timed_out:
        outcome = Outcome.TIMED_OUT
    elif result.exit_code > 128:
        outcome = Outcome.KILLED
        signal = result.exit_code - 128
    else:
        outcome = Outcome.FINISHED
        exit_code = result.exit_code
    return Verdict(outcome, exit_code, signal, result.seconds, result.stdout, result.stderr)


def _root(root: Path) -> Path:
    """A root file system with nothing in it but the links and directories that /usr's programs
    expect.
    """
    for name in ("code", "dev", "etc", "proc", "sys", "tmp", "usr"):
        (root / name).mkdir(parents=True)
    # The runtime gives a tmpfs the mode of the directory below it.
    (root / "tmp").chmod(0o1777)
    (root / "code/snippet").touch()
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        if os.path.islink(f"/{name}"):
            (root / name).symlink_to(f"usr/{name}")
    return root


def _first(*names: str) -> str:
    path = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
    for name in names:
        if (found := shutil.which(name, path=path)) is not None:
            return found
    raise PyconmonError(f"none of {', '.join(names)} is installed")


def main() -> int:
    parser = argparse.ArgumentParser(description="Run untrusted code in a container.")
    parser.add_argument("file", help="a .py or .sh file; - is Python on stdin")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--memory", default="128m")
    parser.add_argument("--pids", type=int, default=64)
    parser.add_argument("--output", type=int, default=1 << 20, help="bytes per stream")
    options = parser.parse_args()
    for name in ("seconds", "pids", "output"):
        value = getattr(options, name)
        if not value > 0:
            parser.error(f"argument --{name}: {value} is not more than 0")
    try:
        code = sys.stdin.buffer.read() if options.file == "-" else Path(options.file).read_bytes()
    except OSError as error:
        parser.error(f"argument file: {options.file}: {error.strerror}")
    try:
        verdict = judge(
            code,
            "sh" if options.file.endswith(".sh") else "python",
            seconds=options.seconds,
            memory=options.memory,
            pids=options.pids,
            output=options.output,
        )
    except PyconmonError as error:
        print(f"sandbox: {error}", file=sys.stderr)
        return 125
    sys.stdout.buffer.write(verdict.stdout)
    sys.stdout.flush()
    sys.stderr.buffer.write(verdict.stderr)
    detail = {Outcome.FINISHED: verdict.exit_code, Outcome.KILLED: verdict.signal}
    print(f"sandbox: {verdict.outcome.value}", detail.get(verdict.outcome, ""), file=sys.stderr)
    return verdict.exit_code if verdict.exit_code is not None else 124


if __name__ == "__main__":
    sys.exit(main())
