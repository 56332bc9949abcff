"""The parser and the dialect: every habit of GLib that callers depend on, a row each."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyconmon import usage
from pyconmon.options import DEFAULTS, FLAG, I32, I64, LIST, OPTIONS, Options, UsageError, parse

ROOT = Path(__file__).resolve().parents[2]

PODMAN_CREATE = shlex.split(
    """
    --api-version 1 -c CID -u CID -r /usr/bin/crun -b /b -p /run/pidfile -n NAME --exit-dir /x/exits
    --persist-dir /x/persist/CID --full-attach -s -l k8s-file:/b/ctr.log --log-level warning --syslog
    --runtime-arg --log-format=json --runtime-arg --log --runtime-arg=/run/oci-log -t
    --conmon-pidfile /run/conmon.pid --exit-command /usr/bin/podman --exit-command-arg --root
    --exit-command-arg /var/lib --exit-command-arg container --exit-command-arg cleanup
    --exit-command-arg CID --runtime-opt --preserve-fds --runtime-opt 2
    """
)
CRIO_EXEC = shlex.split(
    """
    -c ID -n NAME -r /usr/bin/runc -p /tmp/pid -e -l /tmp/log --socket-dir-path /var/run/crio
    --log-level info --sync --log-global-size-max 16777216 -T 5 -s --exec-process-spec /tmp/spec
    --runtime-arg --root=/run/runc
    """
)


def given_in(argv: list[str]) -> dict[str, object]:
    """What argv sets to something else than the default."""
    return {k: v for k, v in parse(argv).as_dict().items() if v != DEFAULTS[k]}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--cid=X"], {"cid": "X"}),
        (["--cid", "X"], {"cid": "X"}),
        (["-c", "X"], {"cid": "X"}),
        (["--cid=a=b"], {"cid": "a=b"}),
        (["--cid="], {"cid": ""}),
        (["--cid", ""], {"cid": ""}),
        (["-c", "X", "--cid", "Y"], {"cid": "Y"}),
        (["-T", "1", "-T", "2"], {"timeout": 2}),
        # The next word is the value, whatever it looks like.
        (["--runtime-arg", "--log-format=json"], {"runtime_args": ("--log-format=json",)}),
        (["--runtime-arg", "--", "-t"], {"runtime_args": ("--",), "terminal": True}),
        (["-c", "--cuuid"], {"cid": "--cuuid"}),
        (["--runtime-arg", "-h"], {"runtime_args": ("-h",)}),
        (["--exit-command-arg", "", "--exit-command-arg="], {"exit_command_args": ("", "")}),
        # Clusters.
        (["-ti"], {"terminal": True, "stdin": True}),
        (["-tic", "X"], {"terminal": True, "stdin": True, "cid": "X"}),
        (["-cti", "X"], {"terminal": True, "stdin": True, "cid": "X"}),
        (["-0", "/p"], {"persist_dir": "/p"}),
        # Flags.
        (["--terminal=false"], {"terminal": True}),
        (["--terminal="], {"terminal": True}),
        (["--api-version=1"], {"api_version": 1}),
        (["--api-version", "1"], {"api_version": 1}),
        (["--api-version", "0"], {"api_version": 1}),
        # Positionals.
        (["a", "-c", "X", "-", "b", ""], {"cid": "X"}),
        (["-c", "X", "--", "-t", "--nope"], {"cid": "X"}),
        # Aliases.
        (["--pidfile", "/p"], {"container_pidfile": "/p"}),
        (["--container-pidfile", "/p", "--pidfile", "/q"], {"container_pidfile": "/q"}),
        (
            ["--runtime-opt", "a", "--restore-arg", "b", "--runtime-opt=c"],
            {"runtime_opts": ("a", "b", "c")},
        ),
        # Of older conmons: ignored.
        (["--seccomp-notify-socket", "/s", "--seccomp-notify-plugins=a"], {}),
        # Any bytes, in any locale.
        (["-n", "a\udcffb"], {"name": "a\udcffb"}),
        (["--name=\u00fcn\u00ef\n%s"], {"name": "\u00fcn\u00ef\n%s"}),
        (["-n", "--dash"], {"name": "--dash"}),
        (["--recover", "/b"], {"recover": "/b"}),
        (["--recover-under=/b"], {"recover_under": "/b"}),
        (["--no-recovery"], {"no_recovery": True}),
    ],
)
def test_accepted(argv: list[str], expected: dict[str, object]) -> None:
    assert given_in(argv) == expected


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--nope"], "Unknown option --nope"),
        (["--cuu=x"], "Unknown option --cuu=x"),
        (["---"], "Unknown option ---"),
        (["--=x"], "Unknown option --=x"),
        (["-x"], "Unknown option -x"),
        (["-tx"], "Unknown option -tx"),
        (["-cX"], "Missing argument for -c"),
        (["-cX", "Y"], "Unknown option -cX"),
        (["-c=X", "Y"], "Unknown option -c=X"),
        (["-T5", "1"], "Unknown option -T5"),
        (["-cu", "a", "b"], "option -u"),
        (["-c"], "Missing argument for -c"),
        (["--cid"], "Missing argument for --cid"),
        (["--nope", "-h"], "Unknown option --nope"),
        (["--version", "--nope"], "Unknown option --nope"),
        (["--no\npe\x1b[2J"], "Unknown option --no\\x0ape\\x1b[2J"),
    ],
)
def test_refused(argv: list[str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(argv)
    assert caught.value.text.startswith("conmon: option parsing failed: ")
    assert says in caught.value.text
    assert "\n" not in caught.value.text


@pytest.mark.parametrize(
    ("argv", "action"),
    [
        (["--version"], "version"),
        (["--version=x"], "version"),
        (["--version", "-c", "X", "--log-max-files", "-5"], "version"),
        (["--help"], "help"),
        (["-h"], "help"),
        (["-?"], "help"),
        (["-th"], "help"),
        (["-h", "--nope"], "help"),
        (["--version", "-h"], "help"),
        ([], "run"),
    ],
)
def test_action(argv: list[str], action: str) -> None:
    assert parse(argv).action == action


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("5", 5),
        ("-5", -5),
        ("+5", 5),
        ("0x10", 16),
        ("0XfF", 255),
        ("-0x10", -16),
        ("010", 8),
        (" \t\n5", 5),
        ("00000000000000000000000000000000007", 7),
        ("2147483647", 2**31 - 1),
        ("-2147483648", -(2**31)),
    ],
)
def test_integer(text: str, number: int) -> None:
    for option, attribute in (("--timeout", "timeout"), ("--log-size-max", "log_size_max")):
        assert getattr(parse([option, text]), attribute) == number


@pytest.mark.parametrize(
    "text",
    ["", " ", "-", "+", "abc", "5x", "5 ", "0x", "08", "1_0", "0b1", "0o7", "+-5", "1e3", "5.0"]
    + ["\u0663", "5\n", "\udcff", "0xg", "--5"],
)
def test_no_integer(text: str) -> None:
    for option in ("--timeout", "-T", "--exit-delay", "--log-size-max", "--log-global-size-max"):
        with pytest.raises(UsageError, match="Cannot parse integer value"):
            parse([option, text])


@pytest.mark.parametrize(
    ("option", "low", "high"),
    [(f"--{name}", -(2**31), 2**31 - 1) for name in OPTIONS if OPTIONS[name][1] == I32]
    + [(f"--{name}", -(2**63), 2**63 - 1) for name in OPTIONS if OPTIONS[name][1] == I64],
)
def test_range(option: str, low: int, high: int) -> None:
    for number in (low, high):
        assert number in given_in([option, str(number)]).values()
    for text in (str(low - 1), str(high + 1), hex(high + 1), "9" * 5000, "-" + "9" * 5000):
        with pytest.raises(UsageError, match="out of range"):
            parse([option, text])


CLASSIC = ["-c", "ID", "-r", "/r", "-p", "/p"]


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (CLASSIC, ()),
        (["-s", *CLASSIC, "-b", "/b", "-t"], ()),
        (["--cid", "ID", "--runtime", "/r", "--pidfile", "/p"], ()),
        ([*CLASSIC, "--no-recovery"], ()),
        ([*CLASSIC, "-e", "ls", "-l"], ("ls", "-l")),
        ([*CLASSIC, "-e", "sh", "-c", "echo; exit 7"], ("sh", "-c", "echo; exit 7")),
        ([*CLASSIC, "-et", "true"], ("true",)),
        ([*CLASSIC, "-e", "-t", "sh", "--", "-h", ""], ("sh", "--", "-h", "")),
        ([*CLASSIC, "-e", "--", "-odd"], ("-odd",)),
        ([*CLASSIC, "-e", "--", "sh", "-c", "x"], ("sh", "-c", "x")),
        ([*CLASSIC, "--exec", "sh", "--version", "-u", "x"], ("sh", "--version", "-u", "x")),
        (["-e", "ls", *CLASSIC], ("ls",)),
    ],
)
def test_classic(argv: list[str], command: tuple[str, ...]) -> None:
    options = parse(argv)
    assert options.dialect == "classic"
    assert options.command == command
    assert (options.cid, options.runtime, options.container_pidfile) == ("ID", "/r", "/p")
    assert options.exec == bool(command)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["-c", "ID"],
        ["-c", "ID", "-r", "/r"],
        ["-c", "ID", "-u", "U"],
        [*CLASSIC, "-u", "U"],
        [*CLASSIC, "-l", "/log"],
        [*CLASSIC, "-e"],
        [*CLASSIC, "-e", "--exec-process-spec", "/s"],
        [*CLASSIC, "-u", "U", "-e", "1", "--exec-process-spec", "/s"],
        ["-c", "ID", "-r", "/r", "--container-pidfile", "/p"],
        [*CLASSIC, "--log-level", "debug"],
        PODMAN_CREATE,
        CRIO_EXEC,
    ],
)
def test_modern(argv: list[str]) -> None:
    options = parse(argv)
    assert options.dialect == "modern"
    assert options.command == ()


def test_podman_create() -> None:
    options = parse(PODMAN_CREATE)
    assert options.api_version == 1
    assert options.runtime_args == ("--log-format=json", "--log", "/run/oci-log")
    assert options.runtime_opts == ("--preserve-fds", "2")
    assert options.exit_command_args == ("--root", "/var/lib", "container", "cleanup", "CID")
    assert (options.full_attach, options.syslog, options.terminal) == (True, True, True)
    assert options.conmon_pidfile == "/run/conmon.pid"


def test_crio_exec() -> None:
    options = parse(CRIO_EXEC)
    assert (options.exec, options.sync, options.timeout) == (True, True, 5)
    assert (options.bundle, options.cuuid) == (None, None)
    assert options.log_global_size_max == 16777216


def test_every_option() -> None:
    """Each option of the table reaches its attribute, by both names."""
    for name, (short, kind, attribute, default) in OPTIONS.items():
        if name == "version" or not attribute:
            continue
        for option in (f"--{name}", f"-{short}") if short else (f"--{name}",):
            value = getattr(parse([option] if kind == FLAG else [option, "7"]), attribute)
            if kind == FLAG:
                assert value == 1
                assert default == 0
            else:
                assert value == {I32: 7, I64: 7, LIST: ("7",)}.get(kind, "7")


def test_options_are_frozen() -> None:
    options = parse(["-c", "X"])
    with pytest.raises(AttributeError):
        options.cid = "Y"
    with pytest.raises(AttributeError):
        del options.cid
    with pytest.raises(AttributeError):
        options.nonsense = 1
    assert not hasattr(options, "__dict__")
    other = options.replace(cid="Y")
    assert (options.cid, other.cid) == ("X", "Y")
    assert repr(other) == "Options(cid='Y')"


def test_options_has_an_annotation_for_each_attribute() -> None:
    assert set(Options.__annotations__) == set(DEFAULTS) == set(Options.__slots__)


WORDS = st.one_of(
    st.sampled_from([f"--{name}" for name in OPTIONS] + [f"--{name}=" for name in OPTIONS]),
    st.sampled_from(["-e", "-c", "-r", "-p", "-ti", "-tic", "--", "-", "", "1", "-h", "--nope"]),
    st.integers().map(str),
    st.binary(max_size=12).map(os.fsdecode),
    st.binary(max_size=6).map(lambda data: os.fsdecode(b"-" + data)),
)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.lists(WORDS, max_size=12))
@example(["-T", "1" * 5000])
@example(["-T", "-"])
@example(["--restore-arg", "a", "--runtime-opt", "b"])
def test_any_words(argv: list[str]) -> None:
    """Whatever the words are, the outcome is Options or a one-line UsageError, and argv is kept."""
    before = list(argv)
    try:
        options = parse(argv)
    except UsageError as error:
        assert error.text.startswith("conmon: ")
        assert all(char >= " " for char in error.text)
        assert len(error.text) < 1000
    else:
        assert options.action in ("run", "help", "version")
        assert options.dialect in ("classic", "modern")
        assert type(options.timeout) is int
        assert all(type(value) is not list for value in options.as_dict().values())
    assert argv == before


def test_help_and_table_agree() -> None:
    named = [name for group in usage.GROUPS.values() for name in group] + list(usage.HIDDEN)
    assert sorted(named) == sorted(OPTIONS)
    text = usage.help_text()
    for name, (short, kind, _attribute, _default) in OPTIONS.items():
        shown = f"--{name}" + ("=" if kind != FLAG else " ")
        assert (shown in text) == (name not in usage.HIDDEN)
        assert not short or f"-{short}, --{name}" in text
    for group in [*usage.GROUPS.values(), usage.HIDDEN]:
        for name, (value, _who, what) in group.items():
            assert bool(value) == (OPTIONS[name][1] != FLAG)
            assert what
    assert max(map(len, text.splitlines())) <= 100


def test_version_text() -> None:
    """CRI-O wants a strict version as the third word, Podman the line's beginning; two lines."""
    text = usage.version()
    assert text.startswith("conmon version 2.2.1\ncommit: pyconmon ")
    assert text.count("\n") == 2
    assert text.endswith("\n")


def test_imports_stay_few() -> None:
    """Parsing is paid for at every start: neither options nor checks bring modules with them."""
    script = (
        "import sys; before = set(sys.modules); import pyconmon.options, pyconmon.checks;"
        "pyconmon.options.parse(['-c', 'x', '-T', '5']);"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-IS", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {script}"],
        capture_output=True,
        text=True,
        check=True,
    )
    of_os = {"os", "os.path", "stat", "_stat", "posixpath", "genericpath"}
    of_os |= {"abc", "_abc", "_collections_abc"}
    ours = {"pyconmon", "pyconmon.options", "pyconmon.checks", "__future__"}
    assert set(done.stdout.split()) - of_os == ours


def test_version_and_help_of_the_command(pyconmon: Path, tmp_path: Path) -> None:
    """Callers read both streams together, and start us with next to no environment."""
    for argv, text in (
        (["--version"], usage.version()),
        (["--version", "-c", "x", "--log-rotate", "--log-max-files", "0"], usage.version()),
        (["--help"], usage.help_text()),
        (["-th", "--nope"], usage.help_text()),
    ):
        done = subprocess.run(
            [pyconmon, *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
            env={"LC_ALL": "C"},
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, text)
    assert list(tmp_path.iterdir()) == []
