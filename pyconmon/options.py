"""The command line: the option table, the parser and the Options it yields.

Callers rely on parse() reading argv as C conmon does, whose parser is GLib's: a value may begin
with a dash, positionals are ignored, options are never abbreviated. Which dialect is spoken is
decided here too. Whether the values make sense together is for checks.py; usage.py has the texts.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

# Kinds of option. A FLAG takes no value. A LIST may be repeated, of the others the last one wins.
FLAG, STR, I32, I64, LIST = "flag", "str", "i32", "i64", "list"

# long name: (short name or "", kind, attribute of Options, default). An empty attribute: accepted
# and ignored. Two names with one attribute are aliases; the second one is deprecated.
OPTIONS: dict[str, tuple[str, str, str, Any]] = {
    "api-version": ("", FLAG, "api_version", 0),
    "bundle": ("b", STR, "bundle", None),
    "cid": ("c", STR, "cid", None),
    "container-pidfile": ("p", STR, "container_pidfile", None),
    "pidfile": ("", STR, "container_pidfile", None),
    "conmon-pidfile": ("P", STR, "conmon_pidfile", None),
    "cuuid": ("u", STR, "cuuid", None),
    "exec": ("e", FLAG, "exec", False),
    "exec-attach": ("", FLAG, "exec_attach", False),
    "exec-process-spec": ("", STR, "exec_process_spec", None),
    "exit-command": ("", STR, "exit_command", None),
    "exit-command-arg": ("", LIST, "exit_command_args", ()),
    "exit-delay": ("", I32, "exit_delay", 0),
    "exit-dir": ("", STR, "exit_dir", None),
    "full-attach": ("", FLAG, "full_attach", False),
    "leave-stdin-open": ("", FLAG, "leave_stdin_open", False),
    "log-allowlist-dir": ("", LIST, "log_allowlist_dirs", ()),
    "log-global-size-max": ("", I64, "log_global_size_max", -1),
    "log-label": ("", LIST, "log_labels", ()),
    "log-level": ("", STR, "log_level", "warning"),
    "log-max-files": ("", I32, "log_max_files", 1),
    "log-path": ("l", LIST, "log_paths", ()),
    "log-rotate": ("", FLAG, "log_rotate", False),
    "log-size-max": ("", I64, "log_size_max", -1),
    "log-tag": ("", STR, "log_tag", None),
    "name": ("n", STR, "name", None),
    "no-container-partial-message": ("", FLAG, "no_container_partial_message", False),
    "no-new-keyring": ("", FLAG, "no_new_keyring", False),
    "no-pivot": ("", FLAG, "no_pivot", False),
    "no-recovery": ("", FLAG, "no_recovery", False),
    "no-sync-log": ("", FLAG, "no_sync_log", False),
    "persist-dir": ("0", STR, "persist_dir", None),
    "recover": ("", STR, "recover", None),
    "recover-under": ("", STR, "recover_under", None),
    "replace-listen-pid": ("", FLAG, "replace_listen_pid", False),
    "restore": ("", STR, "restore", None),
    "runtime": ("r", STR, "runtime", None),
    "runtime-arg": ("", LIST, "runtime_args", ()),
    "runtime-opt": ("", LIST, "runtime_opts", ()),
    "restore-arg": ("", LIST, "runtime_opts", ()),
    "sdnotify-socket": ("", STR, "sdnotify_socket", None),
    "seccomp-notify-plugins": ("", STR, "", None),
    "seccomp-notify-socket": ("", STR, "", None),
    "socket-dir-path": ("", STR, "socket_dir_path", "/var/run/crio"),
    "stdin": ("i", FLAG, "stdin", False),
    "sync": ("", FLAG, "sync", False),
    "syslog": ("", FLAG, "syslog", False),
    "systemd-cgroup": ("s", FLAG, "systemd_cgroup", False),
    "terminal": ("t", FLAG, "terminal", False),
    "timeout": ("T", I32, "timeout", 0),
    "version": ("", FLAG, "version", False),
}

SHORT = {entry[0]: name for name, entry in OPTIONS.items() if entry[0]}

# Long names that the program of January 2017 knew. Its -p meant --pidfile, a deprecated name today.
# (no-recovery is ours: nobody else's caller passes it, and it makes sense in both dialects.)
CLASSIC = frozenset(
    ("terminal", "cid", "runtime", "bundle", "pidfile", "systemd-cgroup", "exec", "no-recovery")
)

DEFAULTS: dict[str, Any] = {entry[2]: entry[3] for entry in OPTIONS.values() if entry[2]}
del DEFAULTS["version"]  # becomes the action
DEFAULTS |= {"action": "run", "dialect": "modern", "command": (), "log_drivers": ()}

_RANGES = {I32: (-(2**31), 2**31 - 1), I64: (-(2**63), 2**63 - 1)}


class UsageError(Exception):
    """The command line can't be obeyed. `text` is the whole line for stderr, without line feed."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class Options:
    """What the command line asks for; never changes. Strings hold any bytes (surrogateescape)."""

    action: str  # "run", "help" or "version"
    dialect: str  # "classic" or "modern"
    api_version: int  # 0 or 1
    bundle: str | None
    cid: str | None
    cuuid: str | None
    name: str | None
    runtime: str | None
    runtime_args: tuple[str, ...]
    runtime_opts: tuple[str, ...]
    container_pidfile: str | None
    conmon_pidfile: str | None
    exec: bool
    exec_process_spec: str | None
    exec_attach: bool
    restore: str | None
    terminal: bool
    stdin: bool
    leave_stdin_open: bool
    log_paths: tuple[str, ...]  # as given
    log_drivers: tuple[tuple[str, str | None], ...]  # what checks.py made of them
    log_size_max: int  # bytes; none if <= 0
    log_global_size_max: int  # bytes; none if <= 0
    log_rotate: bool
    log_max_files: int
    log_allowlist_dirs: tuple[str, ...]
    log_tag: str | None
    log_labels: tuple[str, ...]
    no_container_partial_message: bool
    no_sync_log: bool
    log_level: str
    syslog: bool
    exit_dir: str | None
    persist_dir: str | None
    exit_command: str | None
    exit_command_args: tuple[str, ...]
    exit_delay: int  # seconds
    socket_dir_path: str
    full_attach: bool
    sdnotify_socket: str | None
    replace_listen_pid: bool
    no_pivot: bool
    no_new_keyring: bool
    systemd_cgroup: bool
    sync: bool
    timeout: int  # seconds; none if <= 0
    command: tuple[str, ...]  # the words of a classic exec
    recover: str | None
    recover_under: str | None
    no_recovery: bool

    __slots__ = tuple(DEFAULTS)

    def __init__(self, **values: Any) -> None:
        put = object.__setattr__
        for name in DEFAULTS:
            put(self, name, values.get(name, DEFAULTS[name]))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"Options never change: {name}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"Options never change: {name}")

    def __repr__(self) -> str:
        given = [f"{k}={v!r}" for k, v in self.as_dict().items() if v != DEFAULTS[k]]
        return f"Options({', '.join(given)})"

    def as_dict(self) -> dict[str, Any]:
        """All attributes and their values."""
        return {name: getattr(self, name) for name in DEFAULTS}

    def replace(self, **changes: Any) -> Options:
        """A copy in which some attributes have other values."""
        return Options(**(self.as_dict() | changes))


def parse(argv: list[str]) -> Options:
    """Read argv (without its first word). Raises UsageError, and nothing else, on bad input."""
    values: dict[str, Any] = {}
    words: list[str] = []
    used: set[str] = set()
    index, count = 0, len(argv)
    while index < count:
        word = argv[index]
        index += 1
        if word[:2] == "--":
            if word == "--":
                words += argv[index:]
                break
            name, equals, value = word[2:].partition("=")
            entry = OPTIONS.get(name)
            if entry is None:
                if word == "--help" or word == "--help-all":
                    return Options(action="help")
                raise _failed(f"Unknown option {shown(word)}")
            used.add(name)
            if entry[1] == FLAG:
                _store(values, entry, word, True)  # also "--terminal=false" and "--api-version=1"
                continue
            if not equals:
                if index == count:
                    raise _failed(f"Missing argument for --{name}")
                value = argv[index]  # whatever it looks like: Podman passes "--runtime-arg --log"
                index += 1
            _store(values, entry, "--" + name, value)
        elif word[:1] == "-" and word != "-":
            start = index
            for letter in word[1:]:
                if letter in "h?":
                    return Options(action="help")
                name = SHORT.get(letter, "")
                if not name:
                    raise _failed(f"Unknown option {shown(word)}")
                entry = OPTIONS[name]
                used.add("pidfile" if letter == "p" else name)
                if entry[1] == FLAG:
                    _store(values, entry, word, True)
                    continue
                if index != start:
                    raise _failed(
                        f"Error parsing option -{letter}: second one with a value in {shown(word)}"
                    )
                if index == count:
                    raise _failed(f"Missing argument for -{letter}")
                _store(values, entry, "-" + letter, argv[index])
                index += 1
        else:
            words.append(word)
            # From here on a classic exec's argv is the command's. The modern dialect goes on:
            # Podman's first positional is the 1 of "--api-version 1".
            if "exec" in values and _classic(used, words):
                words += argv[index:]
                break
    if "version" in values:
        return Options(action="version")
    for name, value in values.items():
        if type(value) is list:
            values[name] = tuple(value)
    if _classic(used, words):
        values["dialect"] = "classic"
        if "exec" in used:
            values["command"] = tuple(words)
    return Options(**values)


def _classic(used: set[str], words: list[str]) -> bool:
    """Whether this is the dialect of 2017: the one place that decides.

    Modern callers always give -l, and -u or --exec-process-spec. Classic ones give nothing beyond
    seven options: for create a bundle or a pid file among them, for exec the command as plain words.
    Anything else gets the modern error texts, which existing tests match.
    """
    if not {"cid", "runtime"} <= used <= CLASSIC:
        return False
    return bool(words) if "exec" in used else bool(used & {"bundle", "pidfile"})


def _store(
    values: dict[str, Any], entry: tuple[str, str, str, Any], option: str, value: Any
) -> None:
    _short, kind, attribute, _default = entry
    if kind == LIST:
        values.setdefault(attribute, []).append(value)
    elif kind in (I32, I64):
        values[attribute] = _integer(value, kind, option)
    elif attribute:
        values[attribute] = 1 if attribute == "api_version" else value


def _integer(text: str, kind: str, option: str) -> int:
    """A number as C's strtol reads it with base 0: blanks, a sign, 0x10 is 16 and 010 is 8."""
    digits = text.lstrip(" \t\n\v\f\r")
    negative = digits[:1] == "-"
    if digits[:1] in ("-", "+"):
        digits = digits[1:]
    base, allowed = 10, "0123456789"
    if digits[:2] in ("0x", "0X"):
        base, allowed, digits = 16, "0123456789abcdefABCDEF", digits[2:]
    elif digits[:1] == "0":
        base, allowed = 8, "01234567"
    if not digits or digits.strip(allowed):
        raise _failed(f"Cannot parse integer value '{shown(text)}' for {option}")
    digits = digits.lstrip("0") or "0"
    low, high = _RANGES[kind]
    # The length comes first: int() of very long digits is slow, and refused by Python.
    number = high + 2 if len(digits) > 25 else int(digits, base)
    if negative:
        number = -number
    if not low <= number <= high:
        raise _failed(f"Integer value '{shown(text)}' for {option} out of range")
    return number


def shown(text: str) -> str:
    """Foreign text made fit for one line of an error message: 300 characters, none a control."""
    if len(text) > 300:
        text = text[:300] + "..."
    return "".join([f"\\x{ord(c):02x}" if c < " " or "\x7f" <= c < "\xa0" else c for c in text])


def _failed(text: str) -> UsageError:
    return UsageError("conmon: option parsing failed: " + text)
