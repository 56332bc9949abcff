"""Exit files and the exit command."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from pyconmon import fds
from pyconmon.diag import Diag
from pyconmon.exit_report import present_files, run_exit_command, write_exit_file
from pyconmon.options import Options


@pytest.mark.parametrize("code", [0, 7, 255, -1])
def test_the_bare_number(tmp_path: Path, code: int) -> None:
    assert write_exit_file(str(tmp_path), "name", code, Diag())
    assert (tmp_path / "name").read_bytes() == str(code).encode()
    assert [path.name for path in tmp_path.iterdir()] == ["name"]


def test_an_empty_directory_is_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert write_exit_file("", "exit", 3, Diag())
    assert (tmp_path / "exit").read_bytes() == b"3"


def test_it_cannot_be_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "content").touch()
    assert not write_exit_file(str(tmp_path / "none"), "exit", 3, Diag())
    assert not write_exit_file(str(tmp_path), "busy", 3, Diag())
    first, second = capfd.readouterr().err.splitlines()
    assert str(tmp_path / "none" / "exit") in first
    assert "No such file" in first
    assert str(tmp_path / "busy") in second
    assert [path.name for path in tmp_path.iterdir()] == ["busy"]


def test_it_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    really, tries = fds.replace_file, list[str]()

    def fail_once(path: str, data: bytes) -> None:
        tries.append(path)
        if len(tries) == 1:
            raise OSError(28, "No space left on device")
        really(path, data)

    monkeypatch.setattr(fds, "replace_file", fail_once)
    assert write_exit_file(str(tmp_path), "exit", 3, Diag())
    assert len(tries) == 2
    assert (tmp_path / "exit").read_bytes() == b"3"
    assert capfd.readouterr().err == ""


def test_one_that_was_written_already_keeps_its_time(tmp_path: Path) -> None:
    """The monitor that died had got that far; callers take the time for that of the end."""
    write_exit_file(str(tmp_path), "exit", 3, Diag())
    options = Options(persist_dir=str(tmp_path))
    before = present_files(options)
    assert write_exit_file(str(tmp_path), "exit", 3, Diag())
    (tmp_path / "exit.0123abcd").touch()  # what it left half-way
    written = (tmp_path / "exit").stat()
    assert write_exit_file(str(tmp_path), "exit", 3, Diag(), before)
    after = (tmp_path / "exit").stat()
    assert (after.st_ino, after.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert [path.name for path in tmp_path.iterdir()] == ["exit"]
    # Of another run, or with another code: it is written.
    assert write_exit_file(str(tmp_path), "exit", 4, Diag(), before)
    assert (tmp_path / "exit").read_bytes() == b"4"
    old = (tmp_path / "exit").stat().st_ino
    assert write_exit_file(str(tmp_path), "exit", 4, Diag(), present_files(options))
    assert (tmp_path / "exit").stat().st_ino != old
    (tmp_path / "exit").unlink()
    assert write_exit_file(str(tmp_path), "exit", 4, Diag(), before)
    assert (tmp_path / "exit").read_bytes() == b"4"


# --- the exit command


def command(tmp_path: Path, script: str, *words: str, delay: int = 0) -> Options:
    path = tmp_path / "command"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return Options(exit_command=str(path), exit_command_args=tuple(words), exit_delay=delay)


def run(options: Options, **environment: str) -> None:
    run_exit_command(options, {"PATH": os.environ["PATH"], **environment}, None, set(), Diag())


def test_words_and_environment(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = 'printf \'<%s>\' "$@" "$A" >$OUT'
    words = ["a b", "", "--x", "$A", "'\n"]
    run(command(tmp_path, script, *words), A="1 2", OUT=str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "".join(f"<{word}>" for word in [*words, "1 2"])
    assert capfd.readouterr().err == ""


def test_none() -> None:
    run(Options())


def test_it_has_nothing_of_ours(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    out = tmp_path / "out"
    run(command(tmp_path, f"exec ls /proc/self/fd >'{out}'"))
    os.close(read_end)
    os.close(write_end)
    # 3 is the listing's own.
    assert out.read_text().split() == ["0", "1", "2", "3"]


def test_its_signals(tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = command(tmp_path, f"cat /proc/self/status >'{out}'")
    old = {each: signal.signal(each, signal.SIG_IGN) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        run(options)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    fields = dict(line.split(":\t") for line in out.read_text().splitlines() if "Sig" in line)
    assert int(fields["SigIgn"], 16) == 0
    assert int(fields["SigBlk"], 16) == 0


def test_it_is_waited_for(tmp_path: Path) -> None:
    run(command(tmp_path, "sleep 0.1; echo done >$OUT"), OUT=str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "done\n"


def test_its_delay(tmp_path: Path) -> None:
    begun = time.monotonic()
    run(command(tmp_path, ":", delay=1))
    assert time.monotonic() - begun >= 1.0


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 3", ""),
        ("exit 127", "could not be run"),
        ("kill -KILL $$", "ended by signal 9"),
    ],
)
def test_how_it_ends(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], script: str, said: str
) -> None:
    run(command(tmp_path, script))
    err = capfd.readouterr().err
    assert said in err
    assert bool(err) == bool(said)


def test_it_is_not_there(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(Options(exit_command=str(tmp_path / "none")))
    assert f"exit command {tmp_path}/none could not be run" in capfd.readouterr().err
