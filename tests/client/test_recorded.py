"""What monitor and runtime are given: argv, environment, directory, group, stdio, descriptors."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from pyconmon_client import Container, ContainerStateError, PyconmonError, Runtime
from tests.helpers.monitors import HELPERS

RECORDING = HELPERS / "recording-conmon"
ODD_WORDS = ["-x", "--", "-c", "two words", "$HOME", 'q"uote', "line\nfeed", "", "\udcff\udcfe"]


class Recorder:
    """A Runtime whose monitor records, and whose runtime notes its words and says yes."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.record = directory / "record.json"
        self.calls = directory / "calls"
        self.runtime_path = directory / "runtime"
        state = '{"ociVersion": "1.0", "id": "n", "status": "running", "pid": 1, "bundle": "/b"}'
        self.runtime_path.write_text(
            f"#!/bin/sh\nprintf '%s|' \"$@\" >>{self.calls}; echo >>{self.calls}\n"
            f"case $1 in -v) echo 'runc version 1.2.3'; echo more;; state) echo '{state}';; esac\n"
        )
        self.runtime_path.chmod(0o755)
        self.bundle = directory / "bundle"
        self.bundle.mkdir()
        (self.bundle / "config.json").write_text('{"process": {"args": ["x"], "env": ["A=1"]}}')
        settings.setdefault("conmon_env", {"PATH": "/bin", "RECORD": str(self.record)})
        settings.setdefault("dialect", "classic")
        self.runtime = Runtime(str(self.runtime_path), "", str(RECORDING), **settings)

    def container(self, **settings: Any) -> Container:
        return Container("some-id", "n", str(self.bundle), **settings)

    @property
    def given(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.record.read_text())
        return loaded

    def runtime_calls(self) -> list[list[str]]:
        return [line.split("|")[:-1] for line in self.calls.read_text().splitlines()]


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path)


def identity(fd: int) -> str:
    status = os.fstat(fd)
    return f"{status.st_dev}:{status.st_ino}"


def test_classic_create(recorder: Recorder) -> None:
    recorder.runtime.create_container(recorder.container())
    given, bundle = recorder.given, str(recorder.bundle)
    assert given["path"] == str(RECORDING)
    assert given["argv"] == [
        "-c", "n", "-r", str(recorder.runtime_path), "-b", bundle, "-p", f"{bundle}/pidfile",
    ]  # fmt: skip
    record = str(recorder.record)
    assert given["env"] == {"PATH": "/bin", "RECORD": record, "_OCI_SYNCPIPE": "3"}
    assert given["cwd"] == bundle
    assert given["group"] == given["pid"], "a process group of its own"
    assert sorted(given["fds"]) == ["0", "1", "2", "3"]
    assert given["fds"]["3"][0] == "socket"
    for number in (0, 1, 2):
        assert given["fds"][str(number)][1] == identity(number), "the caller's own stdio"


def test_classic_create_with_systemd_and_terminal(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, cgroup_manager="systemd")
    recorder.runtime.create_container(recorder.container(terminal=True))
    argv = recorder.given["argv"]
    assert argv[0] == "-s"
    assert argv[1:3] == ["-c", "n"]
    assert argv[-1] == "-t"


def test_classic_exec(recorder: Recorder) -> None:
    result = recorder.runtime.exec_sync(recorder.container(), ["ls", *ODD_WORDS])
    assert (result.stdout, result.stderr, result.exit_code) == (b"", b"", 0)
    given = recorder.given
    at = given["argv"].index("-p") + 1
    pidfile = given["argv"][at]
    assert given["argv"] == [
        "-c", "n", "-r", str(recorder.runtime_path), "-p", pidfile, "-e", "ls", *ODD_WORDS,
    ]  # fmt: skip
    assert not os.path.exists(os.path.dirname(pidfile)), "its folder went with the exec"
    assert given["env"]["_OCI_SYNCPIPE"] == "3"
    assert sorted(given["env"]) == ["PATH", "RECORD", "_OCI_SYNCPIPE"]
    assert given["cwd"] == os.getcwd()
    assert given["group"] == os.getpgrp(), "no group of its own"
    assert sorted(given["fds"]) == ["0", "1", "2", "3"]
    assert given["fds"]["0"][2] == "/dev/null"
    assert [given["fds"][n][0] for n in "123"] == ["pipe"] * 3
    assert len({given["fds"][n][1] for n in "123"}) == 3


def test_classic_exec_with_terminal(recorder: Recorder) -> None:
    recorder.runtime.exec_sync(recorder.container(terminal=True), ["sh"])
    assert recorder.given["argv"][-3:] == ["-e", "-t", "sh"]


def test_signals_are_the_default_again(recorder: Recorder) -> None:
    """Python ignores SIGPIPE and SIGXFSZ, and ignored signals survive exec."""
    recorder.runtime.exec_sync(recorder.container(), ["x"])
    # The double is Python itself and ignores the two once more; the mask is as it was given.
    assert int(recorder.given["signals"]["SigBlk"], 16) == 0
    shell = recorder.runtime_path.with_name("monitor")
    shell.write_text(
        "#!/bin/sh\ngrep SigIgn /proc/self/status >&2\necho '{\"exit_code\": 0}' >&3\n"
    )
    shell.chmod(0o755)
    runtime = Runtime(recorder.runtime.path, "", shell, dialect="classic")
    ignored = runtime.exec_sync(recorder.container(), ["x"]).stderr.split()[1]
    assert int(ignored, 16) & (1 << 12 | 1 << 24) == 0


def test_environment_as_strings(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    recorder = Recorder(tmp_path, conmon_env=[f"RECORD={record}", "X=a=b", "EMPTY="])
    recorder.runtime.exec_sync(recorder.container(), ["x"])
    assert recorder.given["env"]["X"] == "a=b"
    assert recorder.given["env"]["EMPTY"] == ""
    assert "PATH" not in recorder.given["env"]


def test_environment_by_default(recorder: Recorder) -> None:
    """A place to look for programs, and nothing of the caller's."""
    monitor, noted = recorder.runtime_path.with_name("monitor"), recorder.record.with_name("noted")
    monitor.write_text(f"#!/bin/sh\ncat /proc/$$/environ >{noted}\nprintf '{{\"pid\": 1}}' >&3\n")
    monitor.chmod(0o755)
    runtime = Runtime(recorder.runtime.path, "", monitor, dialect="classic")
    runtime.create_container(recorder.container())
    given = dict(word.split(b"=", 1) for word in noted.read_bytes().split(b"\0")[:-1])
    assert given.pop(b"_OCI_SYNCPIPE") == b"3"
    assert b"PATH" in given and set(given) <= {b"PATH", b"XDG_RUNTIME_DIR"}


def test_inheritable_descriptors_do_not_leak(recorder: Recorder) -> None:
    read, write = os.pipe()
    try:
        os.set_inheritable(read, True)
        recorder.runtime.exec_sync(recorder.container(), ["x"])
    finally:
        os.close(read)
        os.close(write)
    assert sorted(recorder.given["fds"]) == ["0", "1", "2", "3"]


def test_modern_create(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, dialect="modern")
    log = tmp_path / "log"
    recorder.runtime.create_container(recorder.container(log_path=str(log)), stdin=True)
    given, bundle = recorder.given, str(recorder.bundle)
    assert given["argv"] == [
        "--api-version", "1", "-c", "n", "-u", "some-id", "-n", "n",
        "-r", str(recorder.runtime_path), "-b", bundle, "-p", f"{bundle}/pidfile",
        "-P", f"{bundle}/conmon.pid", "--persist-dir", bundle, "--full-attach",
        "-l", f"k8s-file:{log}", "-i",
    ]  # fmt: skip
    assert sorted(given["fds"]) == ["0", "1", "2", "3"]
    assert given["fds"]["0"][2] == "/dev/null"
    assert given["fds"]["2"][0] == "pipe"


def test_modern_exec_writes_the_start_pipe(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, dialect="modern")
    recorder.runtime.exec_sync(recorder.container(), ["ls", "-l"], env=["B=2"], user="3:4")
    given = recorder.given
    assert given["start"] == 1
    spec = given["argv"][given["argv"].index("--exec-process-spec") + 1]
    assert given["argv"][-3:] == [spec, "-l", "passthrough"]
    assert "--sync" in given["argv"]
    assert not os.path.exists(spec)
    assert given["env"]["_OCI_STARTPIPE"] == "4"


def test_classic_refuses_what_it_has_not(recorder: Recorder) -> None:
    with pytest.raises(ContainerStateError, match="classic dialect"):
        recorder.runtime.create_container(recorder.container(log_path="/x/log"))
    with pytest.raises(ContainerStateError, match="classic dialect"):
        recorder.runtime.exec_sync(recorder.container(), ["x"], env=["A=2"])


def test_runtime_commands(recorder: Recorder) -> None:
    runtime, container = recorder.runtime, recorder.container()
    assert runtime.version() == "1.2.3"
    assert runtime.name == "runtime"
    assert runtime.path == str(recorder.runtime_path)
    assert runtime.runtime_ready() is True
    assert runtime.network_ready() is True
    assert runtime.container_status(container) is None
    runtime.start_container(container)
    assert container.state is not None and container.state.started is not None
    started = container.state.started
    assert runtime.update_status(container).status == "running"
    assert container.state.started == started, "what the runtime does not mention stays"
    runtime.kill_container(container, "TERM")
    runtime.delete_container(container)
    assert recorder.runtime_calls() == [
        ["-v"], ["start", "n"], ["state", "n"], ["kill", "n", "TERM"], ["delete", "n"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    "said",
    ["", "[]", "{", '{"pid": "1"}', '{"pid": 1e999}', '{"pid": -1}', '{"annotations": 5}', "NaN"],
)
def test_a_runtime_that_says_nonsense(recorder: Recorder, said: str) -> None:
    recorder.runtime_path.write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\n")
    with pytest.raises(PyconmonError, match="could not read the state of container n"):
        recorder.runtime.update_status(recorder.container())


def test_the_socket_pair_is_a_stream(recorder: Recorder) -> None:
    script = recorder.runtime_path.with_name("monitor")
    script.write_text(
        "#!/usr/bin/python3\nimport socket\ns = socket.socket(fileno=3)\n"
        "assert s.type == socket.SOCK_STREAM, s.type\ns.send(b'{\"pid\": 1}')\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    runtime = Runtime(recorder.runtime.path, "", script, dialect="classic")
    container = recorder.container()
    runtime.create_container(container)
    assert container.state is not None
    assert (container.state.status, container.state.pid) == ("created", 1)
