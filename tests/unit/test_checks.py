"""The checks: order, texts and streams. What C conmon answers is asked of C conmon itself, too."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pyconmon.checks import check, warnings
from pyconmon.options import Options, UsageError, parse

RUNTIME = "/bin/true"
ID = "0123456789abcdef"
CREATE = ["-c", ID, "-u", ID, "-r", RUNTIME]
EXEC = ["-c", ID, "-r", RUNTIME, "-e", "--exec-process-spec", "/spec"]
LOG = ["-l", "k8s-file:/log"]
JOURNAL = ["-l", "journald:"]


def checked(*argv: str) -> Options:
    return check(parse(list(argv)))


def refusal(argv: list[str]) -> str:
    with pytest.raises(UsageError) as caught:
        check(parse(argv))
    return caught.value.text


# argv, beginning of the line, text in it. In the order of the checks: each row has a mistake of every
# later kind as well where that is possible, so that the order is tested too.
BAD: list[tuple[list[str], str, str]] = [
    ([], "conmon: ", "Container ID not provided. Use --cid"),
    (["--log-level", "loud"], "conmon: ", "Container ID not provided. Use --cid"),
    (
        ["-c", "x", "--log-level", "loud", "-e", "--restore", "d"],
        "[conmon:e]",
        "No such log level loud",
    ),
    (["-c", "x", "--log-level", ""], "[conmon:e]", "No such log level"),
    (["-c", "x", "-e", "--restore", "d"], "[conmon:e]", "'exec' and 'restore'"),
    (["-c", "x", "--exec-attach"], "[conmon:e]", "Attach can only be specified with exec"),
    (
        ["-c", "x", "--exec-attach", "-e"],
        "[conmon:e]",
        "Attach can only be specified for a non-legacy exec session",
    ),
    (["-c", "x"], "[conmon:e]", "Container UUID not provided. Use --cuuid"),
    (
        ["-c", "x", "-e", "--api-version", "1"],
        "[conmon:e]",
        "Container UUID not provided. Use --cuuid",
    ),
    (["-c", "x", "-e"], "[conmon:e]", "Runtime path not provided. Use --runtime"),
    (["-c", "x", "-u", "x"], "[conmon:e]", "Runtime path not provided. Use --runtime"),
    (
        ["-c", "x", "-u", "x", "-r", "/no/such"],
        "[conmon:e]",
        "Runtime path /no/such is not valid No such file or directory",
    ),
    (
        ["-c", "x", "-u", "x", "-r", "/etc/passwd"],
        "[conmon:e]",
        "Runtime path /etc/passwd is not valid Permission denied",
    ),
    (["-c", "x", "-u", "x", "-r", ""], "[conmon:e]", "is not valid No such file or directory"),
    (["-c", "x", "-e", "-r", RUNTIME], "[conmon:e]", "Use --exec-process-spec"),
    ([*CREATE, "--exit-delay", "-1"], "[conmon:e]", "must "),
    (CREATE, "[conmon:e]", "Log driver not provided. Use --log-path"),
    (EXEC, "[conmon:e]", "Log driver not provided. Use --log-path"),
    ([*CREATE, "-l", ""], "[conmon:e]", "log-path must not be empty"),
    ([*CREATE, "-l", ":"], "[conmon:e]", "log-path must not be empty"),
    ([*CREATE, "-l", "k8s-file"], "[conmon:e]", "k8s-file requires a filename"),
    ([*CREATE, "-l", "k8s-file:"], "[conmon:e]", "k8s-file requires a filename"),
    ([*CREATE, "-l", "json-file:x"], "[conmon:e]", "No such log driver json-file"),
    ([*CREATE, *LOG, "-l", "invalid:x"], "[conmon:e]", "No such log driver invalid"),
    (
        ["-c", "short", "-u", "x", "-r", RUNTIME, *JOURNAL],
        "[conmon:e]",
        "longer than 12 characters",
    ),
    (
        ["-c", "123456789012", "-u", "x", "-r", RUNTIME, *JOURNAL],
        "[conmon:e]",
        "Container ID must be longer than 12 characters",
    ),
]
# Checks that C conmon 2.1.6 does not have, or only after it has made the log file.
NEWER: list[tuple[list[str], str, str]] = [
    (["--log-max-files", "-1"], "conmon: ", "log-max-files must be non-negative"),
    (["--log-rotate", "--log-max-files", "0"], "conmon: ", "must be at least 1 when log-rotate is"),
    ([*CREATE, *LOG, "--log-tag", "t"], "[conmon:e]", "k8s-file doesn't support --log-tag"),
    ([*CREATE, *LOG, "--log-label", "A=b"], "[conmon:e]", "k8s-file doesn't support --log-label"),
    *(
        ([*CREATE, *JOURNAL, "--log-label", label], "[conmon:e]", "in format LABEL=VALUE")
        for label in ("=x", "=", "A", "A=b=c", "A==", "")
    ),
    *(
        ([*CREATE, *JOURNAL, "--log-label", label], "[conmon:e]", "contain only uppercase letters")
        for label in ("a=b", "A-B=c", "A B=c", "Ü=x", "A\n=x")
    ),
]
# Ours alone.
OURS: list[tuple[list[str], str, str]] = [
    (["--recover", "/a", "--recover-under", "/b"], "conmon: ", "at the same time"),
    (["--recover-under", "/b", "--sync"], "conmon: ", "Cannot use --sync and --recover-under"),
    (["--recover", ""], "conmon: ", "must not be empty"),
    (["--recover", "/a", "--log-level", "loud"], "[conmon:e]", "No such log level loud"),
    *(
        (
            ["-c", cid, "-u", "x", "-r", RUNTIME, *LOG, "--exit-dir", "/x"],
            "[conmon:e]",
            "name of a file",
        )
        for cid in ("a/b", "/", "..", ".", "", "../x", "a" * 256, "\u00fc" * 128)
    ),
    *(
        (["-c", cid, "-u", "x", "-r", RUNTIME, *LOG], "[conmon:e]", "name of a file")
        for cid in ("a/b", "../../etc/x", "a" * 248)
    ),
    *(
        (["-c", ID, "-u", cuuid, "-r", RUNTIME, *LOG], "[conmon:e]", "Container UUID")
        for cuuid in ("a/b", "..", ".", "", "a" * 256)
    ),
]


@pytest.mark.parametrize(("argv", "start", "says"), BAD + NEWER + OURS)
def test_refused(argv: list[str], start: str, says: str) -> None:
    text = refusal(argv)
    assert text.startswith(start)
    assert says in text
    assert "\n" not in text


@pytest.mark.parametrize(("argv", "start", "says"), BAD)
def test_reference_refuses_the_same(
    argv: list[str], start: str, says: str, conmon: Path, tmp_path: Path
) -> None:
    """C conmon says the same text at the same mistake."""
    done = subprocess.run(
        [conmon, *argv], capture_output=True, cwd=tmp_path, timeout=60, check=False
    )
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 1
    assert said.startswith(start)
    assert says in said


@pytest.mark.parametrize("name", ["conmon", "pyconmon"])
@pytest.mark.parametrize(
    "argv",
    [
        ["--nope"],
        ["-T", "abc"],
        ["-c", "x", "-u", "x", "-r", "/no/such"],
        [*CREATE, "--exit-delay", "-1"],
        [*CREATE, "-l", "json-file:x"],
    ],
)
def test_nothing_happens(
    name: str, argv: list[str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Exit status 1 with one line, and no file is made. (C conmon 2.1.6 uses stdout for some.)"""
    command = request.getfixturevalue(name)
    done = subprocess.run(
        [command, *argv], capture_output=True, cwd=tmp_path, timeout=60, check=False
    )
    assert done.returncode == 1
    said = done.stderr if name == "pyconmon" else done.stdout + done.stderr
    assert said.count(b"\n") == 1
    assert said.endswith(b"\n")
    if name == "pyconmon":
        assert done.stdout == b""
    assert list(tmp_path.iterdir()) == []


def test_text_of_the_runtime_is_bytes(pyconmon: Path, tmp_path: Path) -> None:
    """An argument that is no UTF-8 is repeated byte for byte, also in the C locale."""
    done = subprocess.run(
        [os.fsencode(pyconmon), b"-c", b"x", b"-u", b"x", b"-r", b"/no/\xff\xc3\xbc"],
        capture_output=True,
        cwd=tmp_path,
        timeout=60,
        check=False,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
    )
    assert done.returncode == 1
    assert b"Runtime path /no/\xff\xc3\xbc is not valid No such file or directory\n" in done.stderr


@pytest.mark.parametrize(
    ("name", "level"),
    [("error", "error"), ("FATAL", "error"), ("Panic", "error"), ("warn", "warning")]
    + [("Warning", "warning"), ("info", "info"), ("debug", "debug"), ("TRACE", "trace")],
)
def test_log_level(name: str, level: str) -> None:
    assert checked(*CREATE, *LOG, "--log-level", name).log_level == level


def test_defaults_of_create(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = checked(*CREATE, *LOG)
    assert options.bundle == str(tmp_path)
    assert options.container_pidfile == f"{tmp_path}/pidfile-{ID}"
    assert options.log_level == "warning"
    assert options.log_drivers == (("k8s-file", "/log"),)
    assert checked(*CREATE, *LOG, "--restore", "/d").bundle == str(tmp_path)


def test_defaults_of_exec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without -b an exec has no bundle, thus no attach socket and no control fifos."""
    monkeypatch.chdir(tmp_path)
    options = checked(*EXEC, *LOG)
    assert options.bundle is None
    assert options.container_pidfile == f"{tmp_path}/pidfile-{ID}"


def test_what_is_given_is_kept() -> None:
    options = checked(*CREATE, *LOG, "-b", "rel/b", "-p", "rel/pid")
    assert (options.bundle, options.container_pidfile) == ("rel/b", "rel/pid")


def test_working_directory_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    shutil.rmtree(gone)
    assert refusal([*CREATE, *LOG]).startswith("[conmon:e]: Failed to get working directory")


@pytest.mark.parametrize(
    ("specs", "drivers"),
    [
        (["/a"], (("k8s-file", "/a"),)),
        (["rel"], (("k8s-file", "rel"),)),
        (["/a", "k8s-file:/b"], (("k8s-file", "/b"),)),
        (["none"], ()),
        (["off", "null", "none:"], ()),
        (["none", "/a"], (("k8s-file", "/a"),)),
        (["journald", "journald:"], (("journald", None),)),
        (["/a", "journald", "/b"], (("k8s-file", "/b"), ("journald", None))),
        (["passthrough"], (("passthrough", None),)),
        (["passthrough:", "/a"], (("passthrough", None), ("k8s-file", "/a"))),
    ],
)
def test_log_drivers(specs: list[str], drivers: tuple[tuple[str, str | None], ...]) -> None:
    argv = [word for spec in specs for word in ("-l", spec)]
    assert checked(*CREATE, *argv).log_drivers == drivers


def test_labels_and_tag() -> None:
    """Fine: an empty value, a leading digit; a tag for a file if there is a journal, too."""
    labels = ["--log-label", "FOO=bar baz", "--log-label", "1_A=", "--log-tag", "t"]
    options = checked(*CREATE, *LOG, *JOURNAL, *labels)
    assert options.log_labels == ("FOO=bar baz", "1_A=")
    checked(*CREATE, "-l", "none", *labels)


def test_runtime_may_be_a_directory() -> None:
    """access(2) says yes to it; the create then fails, which callers are told through the pipe."""
    assert checked("-c", ID, "-u", ID, "-r", "/usr", *LOG).runtime == "/usr"


@pytest.mark.parametrize(
    "argv",
    [
        ["-c", "a", "-u", "a" * 255, "-r", RUNTIME, *LOG],
        ["-c", "a" * 255, "-u", "a", "-r", RUNTIME, *LOG, "-p", "/p", "--exit-dir", "/x"],
        # Names that no path is made of.
        ["-c", "a/b", "-u", "a/b", "-r", RUNTIME, *LOG, "-p", "/p", "--full-attach"],
        ["-c", "", "-u", "a", "-r", RUNTIME, *LOG],
        ["-c", "..", "-u", "a", "-r", RUNTIME, *LOG],
        ["-c", "a", "-u", "a/b", "-r", RUNTIME, "-l", "passthrough"],
        [*EXEC, "-u", "a/b", *LOG],
        # Data, whatever it looks like.
        *(
            [*CREATE, *LOG, "-n", n]
            for n in ("a b", "%s%n", "../x", 'q"', "\n", "\udcff", "", "n" * 300)
        ),
    ],
)
def test_names_accepted(argv: list[str]) -> None:
    checked(*argv)


CLASSIC = ["-c", "name", "-r", RUNTIME, "-p", "/p"]


def test_classic() -> None:
    """No log, no uuid, no process spec; the bundle is the working directory."""
    options = checked(*CLASSIC)
    assert (options.dialect, options.log_drivers, options.bundle) == ("classic", (), os.getcwd())
    options = checked(*CLASSIC, "-e", "ls", "-l")
    assert (options.dialect, options.command, options.bundle) == ("classic", ("ls", "-l"), None)
    assert "/no/such is not valid" in refusal(["-c", "n", "-r", "/no/such", "-p", "/p"])


def test_a_container_that_exists_needs_no_runtime() -> None:
    argv = ["-c", ID, "-u", ID, "-r", "/no/such", *LOG]
    assert check(parse(argv), created=True).log_drivers == (("k8s-file", "/log"),)
    assert "/no/such is not valid" in refusal(argv)


def test_recovery_needs_nothing_else() -> None:
    assert checked("--recover", "/b").recover == "/b"
    assert checked("--recover-under", "/b", "--log-level", "WARN").log_level == "warning"


def test_warnings() -> None:
    partial = "--no-container-partial-message"
    assert warnings(checked(*CREATE, *LOG)) == []
    assert warnings(checked(*CREATE, *JOURNAL, partial)) == []
    assert "no effect without journald log driver" in warnings(checked(*CREATE, *LOG, partial))[0]
