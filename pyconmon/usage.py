"""What --help and --version print, and what each option means.

Imported only for these two, and by scripts/make-man. Callers rely on the first line of --version,
from which CRI-O and Podman learn what they may pass, and on --help naming every option (CRI-O looks
for one).
"""

from __future__ import annotations

from . import __version__
from .options import FLAG, OPTIONS

# The conmon release whose command line and files this program has.
CONMON_VERSION = "2.2.1"

# Long name: (what stands for its value, who passes it, what it does).
PODMAN, CRIO, BOTH, PEOPLE = "Podman", "CRI-O", "Podman, CRI-O", "people"
Help = tuple[str, str, str]

WHAT: dict[str, Help] = {
    "api-version": ("", PODMAN, "speak API version 1: an exec reports its pid and its exit code"),
    "cid": ("ID", BOTH, "id of the container; also the name of the file in --exit-dir"),
    "cuuid": ("UUID", BOTH, "unique id, names the attach link; an API 0 exec needs none"),
    "name": ("NAME", BOTH, "name of the container, for the journal"),
    "bundle": ("DIR", BOTH, "the container's bundle (a new container's default: where we are)"),
    "runtime": ("PATH", BOTH, "the OCI runtime, not looked up in PATH"),
    "runtime-arg": ("ARG", BOTH, "argument for the runtime, before its command; repeatable"),
    "runtime-opt": ("ARG", BOTH, "argument for the runtime, after its command; repeatable"),
    "exec": ("", BOTH, "run a command in a running container instead of making one"),
    "exec-process-spec": ("FILE", BOTH, "JSON file that tells the runtime what to execute"),
    "exec-attach": ("", PODMAN, "let a client attach before executing (with API version 1)"),
    "restore": ("DIR", BOTH, "restore the container from this checkpoint"),
    "systemd-cgroup": ("", BOTH, "have the runtime make cgroups through systemd"),
    "no-pivot": ("", BOTH, "tell the runtime not to use pivot_root"),
    "no-new-keyring": ("", PODMAN, "tell the runtime not to make a session keyring"),
    "replace-listen-pid": ("", PEOPLE, "put the runtime's pid into LISTEN_PID, if that is set"),
}
STREAMS: dict[str, Help] = {
    "terminal": ("", BOTH, "give the container a terminal"),
    "stdin": ("", BOTH, "open a pipe to the container's standard input"),
    "leave-stdin-open": ("", CRIO, "keep that pipe open when a client goes away"),
    "full-attach": ("", PODMAN, "make the attach socket in the bundle, and no link to it"),
    "socket-dir-path": ("DIR", CRIO, "where the link to the attach socket is made"),
}
LOGS: dict[str, Help] = {
    "log-path": (
        "DRIVER:PATH",
        BOTH,
        "where output goes: k8s-file:PATH, journald, passthrough, none",
    ),
    "log-size-max": ("BYTES", BOTH, "start the log file afresh at this size"),
    "log-global-size-max": ("BYTES", CRIO, "write no more than this to the log file, ever"),
    "log-rotate": ("", PODMAN, "keep the old log file at --log-size-max instead of dropping it"),
    "log-max-files": ("N", PODMAN, "how many old log files to keep (default: 1)"),
    "log-allowlist-dir": ("DIR", PODMAN, "directory in which rotation is allowed; repeatable"),
    "log-tag": ("TAG", PODMAN, "tag of journal entries"),
    "log-label": ("KEY=VALUE", PODMAN, "further field of journal entries; repeatable"),
    "no-container-partial-message": ("", PODMAN, "do not mark unfinished lines in the journal"),
    "no-sync-log": ("", CRIO, "do not flush the log file to disk at the end"),
}
REPORTS: dict[str, Help] = {
    "container-pidfile": ("FILE", BOTH, "where the runtime writes the container's pid"),
    "conmon-pidfile": ("FILE", BOTH, "where the monitor writes its own pid; not with --sync"),
    "exit-dir": ("DIR", BOTH, "write the exit code here, to a file named like the id"),
    "persist-dir": ("DIR", BOTH, "write the exit code to exit here, and oom after an OOM kill"),
    "exit-command": ("PATH", PODMAN, "program to execute at the end, not looked up in PATH"),
    "exit-command-arg": ("ARG", PODMAN, "argument of the exit command; repeatable"),
    "exit-delay": ("SECONDS", PODMAN, "wait before the exit command"),
    "sdnotify-socket": ("PATH", PODMAN, "relay the container's readiness messages to this socket"),
}
MONITOR: dict[str, Help] = {
    "sync": ("", CRIO, "stay in the foreground; the exit status is the container's"),
    "timeout": ("SECONDS", BOTH, "kill the container's processes after this time"),
    "log-level": ("LEVEL", BOTH, "own messages from error, warning, info, debug or trace on"),
    "syslog": ("", BOTH, "send the monitor's own messages to syslog as well"),
    "no-recovery": ("", PEOPLE, "make no arrangement for the monitor's own death"),
    "recover": ("DIR", PEOPLE, "take over the container whose monitor has died, state is in DIR"),
    "recover-under": ("DIR", PEOPLE, "take over every such container with its state below DIR"),
    "version": ("", BOTH, "print the version and exit"),
}
GROUPS: dict[str, dict[str, Help]] = {
    "What to run": WHAT,
    "Standard streams": STREAMS,
    "Logs": LOGS,
    "Reports": REPORTS,
    "The monitor itself": MONITOR,
}
# Accepted, and left out of --help as conmon does.
HIDDEN: dict[str, Help] = {
    "pidfile": ("FILE", "", "older name of --container-pidfile"),
    "restore-arg": ("ARG", "", "older name of --runtime-opt"),
    "seccomp-notify-socket": ("PATH", "", "ignored"),
    "seccomp-notify-plugins": ("PATHS", "", "ignored"),
}


def version() -> str:
    """Two lines: the conmon version that callers compare, and which program this really is."""
    return f"conmon version {CONMON_VERSION}\ncommit: pyconmon {__version__}\n"


def help_text() -> str:
    """The usage, one line an option."""
    lines = ["Usage:", "  conmon [OPTION...] [WORD...]", ""]
    lines += ["Help Options:", _line("-h, --help", "show this text and exit"), ""]
    for title, group in GROUPS.items():
        lines.append(f"{title}:")
        lines += [_line(spelling(name, entry[0]), entry[2]) for name, entry in group.items()]
        lines.append("")
    return "\n".join(lines)


def spelling(name: str, value: str) -> str:
    """How an option is written: "-c, --cid=ID"."""
    short, kind = OPTIONS[name][:2]
    text = f"-{short}, --{name}" if short else f"--{name}"
    return text if kind == FLAG else f"{text}={value}"


def _line(option: str, text: str) -> str:
    return f"  {option:<32}  {text}"
