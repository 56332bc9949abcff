"""One scripted session, run through a monitor, and all that can be seen of it from outside, made comparable.

The tests rely on Script, play and Outcome. What legitimately differs is taken out here and nowhere else: pids,
paths, time stamps, where a long line is cut into partial records, and the differences of conmon 2.1.6, the
reference, from the conmon 2.2.1 that pyconmon reports itself as.
"""

from __future__ import annotations

import contextlib
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.helpers.bundles import no_pid_namespace
from tests.helpers.call import Call
from tests.helpers.harness import Container, Exec, Harness
from tests.helpers.waiting import wait_until
from tests.helpers.wire import Client


@dataclass(frozen=True)
class Script:
    """What happens. `clients` are attached before the start; the first one sends `stdin`, if that is given."""

    args: Sequence[str]
    kind: str = "create"  # or exec, exec-attach
    api: int = 1
    terminal: bool = False
    stdin: bytes | None = None
    options: Sequence[str] = ()
    log: Sequence[str] | None = None
    clients: int = 0
    runtime: str | None = None  # the text of a stand-in
    own_pid_namespace: bool = True
    kill: str | None = None
    resize: str | None = None
    earlier_log: bytes = b""


@dataclass
class Outcome:
    """What was seen."""

    foreground: int = -1
    said: str = ""
    sync: list[str] = field(default_factory=list)
    exit_file: str | None = None
    persist_file: str | None = None
    log: dict[str, bytes] | None = None
    packets: list[dict[int, bytes]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)


def play(harness: Harness, script: Script) -> Outcome:
    """Runs the script to its end."""
    outcome = Outcome()
    edit = None if script.own_pid_namespace else no_pid_namespace
    in_exec = script.kind != "create"
    container = harness.container(
        ["sleep", "1000"] if in_exec else script.args,
        terminal=script.terminal and not in_exec,
        edit=edit,
    )
    session: Container | Exec = container
    if in_exec:
        container.run()
        session = container.exec(script.args, terminal=script.terminal)
    session.api = script.api
    if script.runtime is not None:
        session.runtime = harness.script("stand-in", script.runtime)
    if script.earlier_log:
        session.log.path.write_bytes(script.earlier_log)
    options = [*script.options, *(["-i"] if script.stdin is not None else [])]
    clients = _begin(session, script, options)
    call = session.call
    assert call
    if not _failed(call):
        _serve(container, session, script, clients)
    outcome.sync = [_plain(line, harness, session) for line in _lines(session)]
    outcome.foreground = call.status()
    if session.monitor_pidfile.exists():  # with --sync there is none, and the monitor has ended
        session.wait_monitor_gone()
    _look(harness, session, outcome)
    outcome.packets = [{n: client.stream(n) for n in (2, 3)} for client in clients]
    container.delete()
    return outcome


def _begin(session: Container | Exec, script: Script, options: list[str]) -> list[Client]:
    """Up to the point where the command is about to run; the clients are attached by then."""
    if isinstance(session, Container):
        call = session.create(*options, log=script.log)
    elif script.kind == "exec":
        call = session.begin(*options, log=script.log)
        return []
    else:
        call = session.begin("--exec-attach", *options, log=script.log)
        call.go()
        assert call.attach_pipe
        assert call.attach_pipe.value() == {"data": 0}
    if isinstance(session, Container):
        # The first line has to be there; it is kept for `_lines`.
        call.sync.peek()
        if _failed(call):
            return []
    # conmon accepts no client before the runtime has returned, and that waits for the second byte.
    accepted = script.kind == "create"
    return [session.attach(accepted=accepted) for _ in range(script.clients)]


def _serve(
    container: Container, session: Container | Exec, script: Script, clients: list[Client]
) -> None:
    readers = [client.collect() for client in clients]
    if script.resize is not None:
        session.ctl(script.resize)
    if isinstance(session, Container):
        session.start()
    elif script.kind == "exec-attach":
        assert session.call
        session.call.go()
    if script.stdin is not None and clients:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it need not read
            for at in range(0, len(script.stdin), 4096):
                clients[0].send(script.stdin[at : at + 4096])
            clients[0].half_close()
    if script.kill is not None:
        wait_until(lambda: session.log.text() == "ready\n", 30, "the word ready")
        container.kill(script.kill)
    for reader in readers:
        reader.join(30)
        assert not reader.is_alive()


def _failed(call: Call) -> bool:
    """Whether there has been word of a failure, as far as it is known by now."""
    return bool(call.sync.writes) and b": -1" in call.sync.writes[0]


def _lines(session: Container | Exec) -> list[bytes]:
    assert session.call
    return session.call.sync.rest().splitlines(keepends=True)


def _plain(line: bytes, harness: Harness, session: Container | Exec) -> str:
    """A sync line without what differs from run to run."""
    text = line.decode("utf-8", errors="surrogateescape").replace("\\/", "/")
    text = text.replace(str(harness.home), "HOME").replace(session.cid, "CID")
    if session.pidfile.exists():
        pid = re.escape(session.pidfile.read_text())
        text = re.sub(rf'"(pid|data)": {pid}\b', r'"\1": PID', text, count=1) if pid else text
    return re.sub(r'time=\\"[^"]*\\"', "time=T", text)


def _look(harness: Harness, session: Container | Exec, outcome: Outcome) -> None:
    """The files at the end."""
    assert session.call
    outcome.said = session.call.stderr.replace(str(harness.home), "HOME")
    for path, name in (
        (session.exit_file, "exit_file"),
        (session.persist_dir / "exit", "persist_file"),
    ):
        if path.exists():
            setattr(outcome, name, path.read_text())
    if session.log.path.exists():
        outcome.log = {name: session.log.stream(name) for name in ("stdout", "stderr")}
    for path in session.directory.rglob("*"):
        name = str(path.relative_to(session.directory)).replace(session.cid, "CID")
        mode = path.lstat().st_mode
        kind = stat.filemode(mode)
        if name in ("ctl", "winsz") or name.startswith(("monitor-", "exec")):
            continue  # 2.1.6 leaves the two FIFOs behind; the others are the tests' own
        if name == "attach" and outcome.exit_file is None:
            continue  # and the socket, if there was no container in the end
        if path == session.log.path:
            kind = kind.replace("rw-r-----", "rw-------")  # 0640 since 2.1.13
        outcome.files[name] = kind


def differences(one: Outcome, other: Outcome) -> list[str]:
    """What is not the same, in words short enough to read."""
    found = []
    for name in one.__dataclass_fields__:
        first, second = getattr(one, name), getattr(other, name)
        if first != second:
            found.append(f"{name}: {_short(first)} != {_short(second)}")
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 600 else f"{text[:300]} ... {text[-250:]} ({len(text)} characters)"
