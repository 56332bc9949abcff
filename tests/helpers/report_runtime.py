"""The second half of report-runtime: the report, and a trivial runtime.

The report (JSON, bytes as surrogate escapes): argv (without argv[0]), descriptors (number -> target
of the link), blocked and ignored (lists of signal numbers), environment (list of NAME=VALUE), cwd,
umask, pid, ppid, pgid, sid, pdeathsig, oom_score_adj, stdin_mode/stdout_mode/stderr_mode.

From the environment: REPORT_TO (the report's file, put in place whole), REPORT_COMMAND (what the
container runs, default sleep 300), REPORT_STDERR (a text for stderr), REPORT_EXIT (the exit status;
other than 0 means: no container and no pid file), REPORT_NO_PIDFILE.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys


def descriptors() -> dict[str, str]:
    """What is open; must come first, before we open anything."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the descriptor of the listing itself
    return found


def signals(status: bytes, field: bytes) -> list[int]:
    """The signal numbers of a mask in /proc/PID/status."""
    for line in status.splitlines():
        if line.startswith(field + b":"):
            mask = int(line.split()[1], 16)
            return [number for number in range(1, 65) if mask >> (number - 1) & 1]
    return []


def take(path: str) -> bytes:
    """The contents of a file, which goes."""
    with open(path, "rb") as file:
        data = file.read()
    os.unlink(path)
    return data


def report(to: str, argv: list[str]) -> None:
    """Write the report."""
    open_ones = descriptors()
    status = take(to + ".status")
    umask = os.umask(0)
    os.umask(umask)
    death_signal = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(death_signal), 0, 0, 0)  # PR_GET_PDEATHSIG
    with open("/proc/self/oom_score_adj") as file:
        oom_score_adj = int(file.read())
    modes = {}
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        modes[name + "_mode"] = os.fstat(number).st_mode if str(number) in open_ones else None
    whole = {
        "argv": argv,
        "descriptors": open_ones,
        "blocked": signals(status, b"SigBlk"),
        # Perl ignores SIGFPE (8), and 32 and 33 are the C library's own: nothing can be said of them.
        "ignored": [number for number in signals(status, b"SigIgn") if number not in (8, 32, 33)],
        "environment": [os.fsdecode(each) for each in take(to + ".environ").split(b"\0") if each],
        "cwd": os.getcwd(),
        "umask": umask,
        "pid": os.getpid(),
        "ppid": os.getppid(),
        "pgid": os.getpgid(0),
        "sid": os.getsid(0),
        "pdeathsig": death_signal.value,
        "oom_score_adj": oom_score_adj,
        **modes,
    }
    with open(to + ".new", "w") as file:
        json.dump(whole, file, indent=1)
    os.rename(to + ".new", to)


def container(words: list[str]) -> int:
    """Start the container's process, a grandchild, so that it is orphaned as runc's would be."""
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        os.setsid()
        pid = os.fork()
        if pid == 0:
            os.close(read_end)
            os.close(write_end)
            os.execvp(words[0], words)
        os.write(write_end, str(pid).encode())
        os._exit(0)
    os.close(write_end)
    os.wait()
    return int(os.read(read_end, 32))


def main(argv: list[str]) -> int:
    """Report, then behave."""
    report(os.environ["REPORT_TO"], argv)
    sys.stderr.write(os.environ.get("REPORT_STDERR", ""))
    sys.stderr.flush()
    status = int(os.environ.get("REPORT_EXIT", "0"))
    if status:
        return status
    if not {"create", "exec", "restore"} & set(argv):
        return 0
    pid = container(os.environ.get("REPORT_COMMAND", "sleep 300").split())
    if "--pid-file" in argv and "REPORT_NO_PIDFILE" not in os.environ:
        with open(argv[argv.index("--pid-file") + 1], "w") as file:
            file.write(str(pid))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
