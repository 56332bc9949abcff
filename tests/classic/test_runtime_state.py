"""What the runtime is given in the classic dialect: words, descriptors, signals, environment, folder, limits.

A runtime that writes down how it was started stands in for a real one.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.classic.sessions import Call, Containers
from tests.helpers import runtimes
from tests.helpers.waiting import gone

Report = dict[str, Any]
Start = Callable[..., tuple[Call, Report]]


@pytest.fixture
def start(alone: Containers) -> Iterator[Start]:
    """start(kind, **settings of a call) -> the call and what its runtime was given."""
    reporting = runtimes.reporting()
    made: list[Call] = []

    def begin(
        kind: str = "create", *, words: list[Any] | None = None, **settings: Any
    ) -> tuple[Call, Report]:
        container = alone(runtime=reporting)
        to = alone.home / f"report{len(made)}"
        extra = settings.pop("environment", {})
        pidfile = alone.home / f"pid{len(made)}"
        before = ["-c", container.name, "-r", reporting]
        if words is None:
            own = ["-b", container.bundle, "-p", pidfile] if kind == "create" else ["-p", pidfile]
            words = [*before, *own, *(["-e", "true"] if kind == "exec" else [])]
        else:
            words = [*before, *words]
        environment = {"REPORT_TO": str(to), "REPORT_COMMAND": "true", **extra}
        call = alone.call(words, environment=environment, **settings)
        made.append(call)
        assert call.status() == 0, call.stderr
        report: Report = json.loads(to.read_text())
        return call, report

    yield begin


def expected(call: Call, **more: str) -> dict[str, str]:
    """Nothing but what the test has given."""
    return {"PATH": os.environ["PATH"], "REPORT_COMMAND": "true", **more}


def environment(report: Report) -> dict[str, str]:
    return dict(each.partition("=")[::2] for each in report["environment"])


kinds = pytest.mark.parametrize("kind", ["create", "exec"])


def test_the_words_of_create(start: Start, alone: Containers) -> None:
    call, report = start(words=["-s", "-b", "some bundle", "-p", "some/../pid"], cwd=_home(alone))
    name = alone.made[0].name
    assert report["argv"] == [
        "--systemd-cgroup",
        "create",
        "--bundle",
        "some bundle",
        "--pid-file",
        "some/../pid",
        name,
    ]
    assert (alone.home / "some bundle" / "exit").read_bytes() == b"0"
    assert call.rest() == b'{"pid": %s}\n' % (alone.home / "pid").read_bytes()


def _home(alone: Containers) -> Path:
    (alone.home / "some").mkdir()
    (alone.home / "some bundle").mkdir()
    return alone.home


def test_the_words_of_create_by_default(start: Start, alone: Containers) -> None:
    (alone.home / "here").mkdir()
    here = alone.home / "here"
    _, report = start(words=["-p", "pid"], cwd=here)
    assert report["argv"] == [
        "create",
        "--bundle",
        str(here),
        "--pid-file",
        "pid",
        alone.made[0].name,
    ]


@pytest.mark.parametrize("options", [["-e"], ["-s", "-e"], ["-b", "/none", "-e"]])
def test_the_words_of_exec(start: Start, alone: Containers, options: list[str]) -> None:
    command = [b"a b", b"", b"$HOME", b"-c", b"--", b"\xff\n", b"-t"]
    _, report = start("exec", words=["-p", "pid", *options, *command])
    words = [os.fsdecode(word) for word in command]
    name = alone.made[0].name
    assert report["argv"] == ["exec", "--pid-file", "pid", "--detach", name, *words]


def test_the_name_is_any_text(alone: Containers) -> None:
    to = alone.home / "report"
    name = b"a b\xff$(id)\n"
    call = alone.call(
        ["-c", name, "-r", runtimes.reporting(), "-b", alone.home],
        environment={"REPORT_TO": str(to), "REPORT_COMMAND": "true"},
    )
    assert call.status() == 0, call.stderr
    pidfile = os.path.join(os.fsencode(alone.home), b"pidfile-" + name)
    assert json.loads(to.read_text())["argv"][-3:] == [
        "--pid-file",
        os.fsdecode(pidfile),
        os.fsdecode(name),
    ]


@kinds
def test_descriptors(start: Start, kind: str, tmp_path: Path) -> None:
    """The caller's three streams, and nothing else of the monitor's or of the sync pipe."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(tmp_path / f"fd{n}", "w+b")) for n in range(3)]
        _, report = start(kind, stdin=files[0], stdout=files[1], stderr=files[2])
    assert report["descriptors"] == {str(n): str(tmp_path / f"fd{n}") for n in range(3)}


@kinds
def test_descriptors_that_the_caller_passes_on(start: Start, kind: str) -> None:
    read_end, write_end = os.pipe()
    high = os.dup2(write_end, 100, inheritable=True)
    _, report = start(kind, pass_fds=[read_end, high])
    pipe = f"pipe:[{os.fstat(read_end).st_ino}]"
    for fd in (read_end, write_end, high):
        os.close(fd)
    extra = {number: to for number, to in report["descriptors"].items() if int(number) > 2}
    assert extra == {str(read_end): pipe, "100": pipe}


@kinds
def test_signals_are_those_of_a_fresh_process(start: Start, kind: str) -> None:
    _, report = start(kind)
    assert report["blocked"] == []
    assert report["ignored"] == []


@kinds
def test_a_mask_of_the_caller_is_passed_on(start: Start, kind: str) -> None:
    """As it is given, and the monitor itself works with it, whatever it blocks."""
    blocked = {signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1, signal.SIGRTMIN + 3}
    old = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        _, report = start(kind)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
    assert set(report["blocked"]) == {int(number) for number in blocked}


@kinds
@pytest.mark.parametrize("name", ["SIGCHLD", "SIGTERM", "SIGINT", "SIGHUP"])
def test_what_the_caller_ignores(start: Start, kind: str, name: str) -> None:
    """An ignored SIGCHLD above all: the kernel would throw exit codes away."""
    number = getattr(signal, name)
    old = signal.signal(number, signal.SIG_IGN)
    try:
        call, report = start(kind, environment={"REPORT_COMMAND": "false"})
    finally:
        signal.signal(number, old)
    assert number not in report["ignored"]
    if kind == "exec":
        assert call.rest() == b'{"exit_code": 1}\n'


def test_a_quick_runtime_and_a_caller_that_ignores_its_children(alone: Containers) -> None:
    """The runtime has ended long before the monitor is ready to hear of it."""
    old = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        call = alone(runtime=alone.script("exit 3")).create()
    finally:
        signal.signal(signal.SIGCHLD, old)
    assert call.status() == 1
    assert b"status 3" in call.stderr


@kinds
def test_the_environment(start: Start, kind: str) -> None:
    given = {"A": "1", "EMPTY": "", "WITH": "a=b c\n", "LANG": "C", "BYTES": "caf\udce9"}
    call, report = start(kind, environment=given)
    got = environment(report)
    assert got.pop("REPORT_TO")
    assert int(got.pop("_OCI_SYNCPIPE")) > 2
    assert got == expected(call, **given)


@kinds
@pytest.mark.parametrize(
    "given", [{"LC_ALL": "C"}, {"LANG": "C"}, {"LC_CTYPE": "C"}, {"LC_CTYPE": "C.UTF-8"}, {}]
)
def test_the_locale_is_as_given(start: Start, kind: str, given: dict[str, str]) -> None:
    """Python changes LC_CTYPE in its own environment; nobody else may see that."""
    _, report = start(kind, environment=given)
    got = environment(report)
    assert {name: got[name] for name in got if name.startswith(("LC_", "LANG"))} == given


@kinds
def test_the_place(start: Start, kind: str, tmp_path: Path) -> None:
    """Folder, process group, session, parent: the monitor's, which are the caller's."""
    here = tmp_path / "here"
    here.mkdir()
    call, report = start(kind, cwd=here)
    assert report["cwd"] == str(here)
    assert report["ppid"] == call.pid
    assert report["pgid"] == os.getpgid(0)
    assert report["sid"] == os.getsid(0)
    assert report["umask"] == 0o022
    assert report["pdeathsig"] == signal.SIGKILL
    assert gone(report["pid"])


def test_a_process_group_of_its_own(start: Start) -> None:
    call, report = start(process_group=0)
    assert report["pgid"] == call.pid


def test_the_umask_does_not_depend_on_the_caller(start: Start, alone: Containers) -> None:
    _, report = start(umask=0o077)
    assert report["umask"] == 0o022
    assert (alone.made[0].exit_file.stat().st_mode & 0o777) == 0o644


@kinds
def test_the_memory_score_is_the_callers(start: Start, kind: str) -> None:
    with open("/proc/self/oom_score_adj") as file:
        ours = int(file.read())
    _, report = start(kind)
    assert report["oom_score_adj"] == ours


def test_limits_are_passed_on(alone: Containers) -> None:
    """As given: also a very small number of descriptors."""
    noted = alone.home / "limits"
    script = alone.script(f"ulimit -n >'{noted}'; exit 1")

    def fewer() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (30, 40))

    call = alone(runtime=script).create(preexec_fn=fewer)
    assert call.status() == 1
    assert noted.read_text() == "30\n"


@kinds
def test_the_words_of_a_terminal(alone: Containers, kind: str, tmp_path: Path) -> None:
    """By console socket; where the runtime does not use it, that is a failure, and the file goes."""
    to = tmp_path / "report"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    container = alone(runtime=runtimes.reporting(), terminal=True)
    words = container.create_words()
    if kind == "exec":
        words = ["-c", container.name, "-r", container.runtime, "-p", "pid", "-e", "-t", "sh"]
    call = alone.call(
        words, environment={"REPORT_TO": str(to), "TMPDIR": f"{temporary}/"}, stdin=subprocess.PIPE
    )
    assert call.status() == 1
    assert call.rest() == b""
    assert b"Runtime did not set up terminal" in call.stderr
    argv = json.loads(to.read_text())["argv"]
    socket = Path(argv[argv.index("--console-socket") + 1])
    assert socket.parent == temporary
    assert list(temporary.iterdir()) == []
    if kind == "exec":
        assert argv == [
            *("exec", "--pid-file", "pid", "--tty", "--detach"),
            *("--console-socket", str(socket), container.name, "sh"),
        ]
    else:
        pidfile, bundle = str(container.pidfile), str(container.bundle)
        assert argv == [
            *("create", "--bundle", bundle, "--pid-file", pidfile),
            *("--console-socket", str(socket), container.name),
        ]
