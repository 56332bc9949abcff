"""The command line from outside: what is refused and how, what is accepted, and odd names and paths."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.helpers.harness import Container, Harness, target

CID = "0123456789abcdef"


def run(harness: Harness, *words: str | bytes) -> subprocess.CompletedProcess[str]:
    """The monitor with just these words, in an empty directory."""
    return subprocess.run(
        [harness.monitor, *words],
        check=False,
        cwd=harness.home,
        env={"PATH": os.environ["PATH"]},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=60,
    )


def refused(harness: Harness, *words: str | bytes) -> str:
    """What it says on stderr while it refuses; it must not have done anything else."""
    before = sorted(os.listdir(harness.home))
    done = run(harness, *words)
    assert done.returncode == 1, done
    # 2.1.6 has the parser's errors on stdout.
    said = done.stderr or done.stdout
    assert said.count("\n") == 1, said
    assert said.endswith("\n")
    assert sorted(os.listdir(harness.home)) == before
    return said


def least(harness: Harness, *more: str) -> list[str]:
    """The least that a create needs, with a runtime that notes that it was called."""
    runtime = harness.script("noting", f"echo called >>{harness.home}/called; exit 1")
    return ["-c", CID, "-u", CID, "-r", str(runtime), *more]


# --- version and help


def test_the_version(harness: Harness) -> None:
    """CRI-O reads both streams together and takes the third word for a strict version number."""
    done = run(harness, "--version")
    assert done.returncode == 0
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"conmon version \d+\.\d+\.\d+", lines[0])
    assert lines[1].startswith("commit: ")
    assert done.stdout.endswith("\n")


def test_the_version_wins_over_the_checks_and_loses_to_the_parser(harness: Harness) -> None:
    assert run(harness, "-e", "--version", "--restore", "x").returncode == 0
    assert run(harness, "--version", "--nope").returncode == 1


@pytest.mark.parametrize("word", ["-h", "-?", "--help"])
def test_help(harness: Harness, word: str) -> None:
    done = run(harness, word)
    assert done.returncode == 0
    assert done.stderr == ""
    for option in ("--cid", "--log-global-size-max", "--exit-command-arg", "--full-attach"):
        assert option in done.stdout


@pytest.mark.parametrize("word", ["--version", "--help"])
@pytest.mark.parametrize("where", [">&-", ">/dev/full"])
def test_nobody_takes_the_answer(harness: Harness, word: str, where: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" {word} {where}', harness.monitor],
        check=False,
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_help_acts_when_it_is_reached(harness: Harness) -> None:
    assert run(harness, "-h", "--nope").returncode == 0
    assert run(harness, "--nope", "-h").returncode == 1


# --- refusals


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["--nope"], "nope"),
        (["--cuu", "x"], "cuu"),
        (["-c"], "-c"),
        (["--cid"], "cid"),
        (["-T", "abc"], "abc"),
        (["-T", ""], "option parsing failed"),
        (["-T", "1x"], "1x"),
        (["-T", "99999999999"], "out of range"),
        (["--log-size-max", "abc"], "abc"),
        (["-cX", "y"], "option parsing failed"),
        (["-cu", "a", "b"], "option parsing failed"),
        ([], "Container ID not provided. Use --cid"),
        (["-c", CID], "Container UUID not provided. Use --cuuid"),
        (["-c", CID, "-u", CID], "Runtime path not provided. Use --runtime"),
        (["-c", CID, "-u", CID, "-r", "/nope"], "Runtime path /nope is not valid"),
        (["-c", CID, "-u", CID, "-r", "/etc/passwd"], "Runtime path /etc/passwd is not valid"),
        (["-c", CID, "--log-level", "loud"], "loud"),
        (["-c", CID, "-e", "--restore", "x"], "restore"),
        (["-c", CID, "--exec-attach"], "exec"),
        (
            ["-c", CID, "-e", "--exec-attach"],
            "Attach can only be specified for a non-legacy exec session",
        ),
        (["-c", CID, "-u", CID, "-r", "/bin/sh", "-e"], "process spec"),
        (["-c", CID, "-u", CID, "-r", "/bin/sh", "--exit-delay", "-1"], "delay"),
        (
            ["-c", CID, "-u", CID, "-r", "/bin/sh"],
            "Log driver not provided. Use --log-path",
        ),
    ],
)
def test_refused(harness: Harness, words: list[str], fragment: str) -> None:
    assert fragment.lower() in refused(harness, *words).lower()


@target("2.1.6 has these errors on stdout")
@pytest.mark.parametrize("words", [["--nope"], ["-T", "abc"], ["--cid"]])
def test_the_parsers_errors_are_on_stderr(harness: Harness, words: list[str]) -> None:
    done = run(harness, *words)
    assert done.stdout == ""
    assert done.stderr.startswith("conmon: option parsing failed: ")


@target("2.1.6 has no rotation")
@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["--log-max-files", "-1"], "log-max-files must be non-negative"),
        (
            ["--log-rotate", "--log-max-files", "0"],
            "must be at least 1 when log-rotate is enabled",
        ),
    ],
)
def test_rotation_refused(harness: Harness, words: list[str], fragment: str) -> None:
    assert fragment in refused(harness, *words)


@pytest.mark.parametrize(
    ("log", "fragment"),
    [
        ("", "log-path must not be empty"),
        (":", "log-path must not be empty"),
        ("k8s-file", "k8s-file requires a filename"),
        ("k8s-file:", "k8s-file requires a filename"),
        ("json-file:x", "No such log driver json-file"),
        ("invalid:x", "No such log driver invalid"),
        ("/nope/log", "Failed to open log file"),
    ],
)
def test_log_paths_refused(harness: Harness, log: str, fragment: str) -> None:
    words = least(harness, "-l", log)
    assert fragment in refused(harness, *words)


def test_a_short_id_is_refused_for_the_journal(harness: Harness) -> None:
    words = least(harness, "-l", "journald:")
    words[1] = words[3] = "0123456789ab"
    assert "Container ID must be longer than 12 characters" in refused(harness, *words)


@target("2.1.6 has no labels")
@pytest.mark.parametrize(
    ("label", "fragment"),
    [
        ("=x", "LABEL=VALUE"),
        ("x", "LABEL=VALUE"),
        ("A=b=c", "Container labels must be in format LABEL=VALUE"),
        ("a=b", "must contain only uppercase letters, numbers and underscore"),
    ],
)
def test_labels_refused(harness: Harness, label: str, fragment: str) -> None:
    words = least(harness, "-l", "journald:", "--log-label", label)
    assert fragment in refused(harness, *words)


@target("conmon takes it for a path, and writes the exit file where that leads")
@pytest.mark.parametrize("cid", ["../x", "../../x", "a/b", ".."])
def test_an_id_that_is_a_path_leads_nowhere(harness: Harness, cid: str) -> None:
    """Whether it is refused or survived, nothing is written where the id leads."""
    exits = harness.home / "d/exits"
    (exits / "a").mkdir(parents=True)
    container = harness.container(["true"])
    container.exit_dir = exits
    container.runtime = harness.script(
        "brief",
        'while [ "$1" != --pid-file ]; do shift; done; sleep 0.1 & echo $! >"$2"',
    )
    before = sorted(harness.home.glob("*")), sorted(exits.parent.rglob("*"))
    argv = [cid if word == container.cid else word for word in container.create_argv("--sync")]
    container.launch(argv).status()
    assert (sorted(harness.home.glob("*")), sorted(exits.parent.rglob("*"))) == before


# --- acceptances


def created(harness: Harness, *words: str, log: list[str] | None = None) -> Container:
    """A container that ran to its end with these more options."""
    container = harness.container(["sh", "-c", "echo hi; exit 3"])
    container.run(*words, log=log)
    assert container.wait_exit() == "3"
    return container


@pytest.mark.parametrize("level", ["trace", "TRACE", "Warning", "error", "fatal", "panic", "info"])
def test_levels(harness: Harness, level: str) -> None:
    created(harness, "--log-level", level)


@pytest.mark.parametrize(
    "words",
    [
        ["--terminal-not"],
        ["-T", "1_0"],
        ["--exec=yes"],
    ],
)
def test_near_misses_are_refused(harness: Harness, words: list[str]) -> None:
    assert refused(harness, *words)


@pytest.mark.parametrize(
    "words",
    [
        ["--timeout=0x10"],
        ["-T", " 010"],
        ["-T", "-5"],
        ["--no-pivot", "--no-new-keyring"],
        ["stray", "-", "words"],
        ["--log-size-max", "-1", "--log-global-size-max=-1"],
        ["--exit-delay=0"],
        ["--", "-x", "--nope"],
    ],
)
def test_accepted(harness: Harness, words: list[str]) -> None:
    container = created(harness, *words)
    assert container.log.text() == "hi\n"


def test_the_word_after_an_option_is_its_value_whatever_it_looks_like(harness: Harness) -> None:
    container = harness.container(["true"])
    container.runtime = harness.script("noting", 'printf "%s\\n" "$@" >&2; exit 1')
    call = container.create(
        *("--runtime-arg", "--log-format=json", "--runtime-arg", "--", "--runtime-arg=-x"),
        *("--runtime-opt", "--cid", "--runtime-opt", "", "--restore-arg", "-c"),
    )
    words = call.sync.value()["message"].splitlines()
    assert words[:3] == ["--log-format=json", "--", "-x"]
    assert words[3:8] == [
        "create", "--bundle", str(container.directory), "--pid-file", str(container.pidfile),
    ]  # fmt: skip
    assert words[8:] == ["--cid", "", "-c", container.cid]


RUNTIME_LINES = {
    "create": (
        ["-s", "--no-pivot", "--no-new-keyring"],
        "--systemd-cgroup --first create --bundle B --pid-file P --no-pivot --no-new-keyring"
        " --last CID",
    ),
    "restore": (
        ["--restore", "/image"],
        "--first restore --bundle B --pid-file P --detach --image-path /image --work-path B"
        " --last CID",
    ),
    "exec": (
        ["-s", "--no-pivot"],
        "--first exec --pid-file P --process SPEC --detach --last CID",
    ),
}


@pytest.mark.parametrize("kind", list(RUNTIME_LINES))
def test_the_runtimes_command_line(harness: Harness, kind: str) -> None:
    options, expected = RUNTIME_LINES[kind]
    options = [*options, "--runtime-arg", "--first", "--runtime-opt", "--last"]
    container = harness.container(["true"])
    session = container.exec(["true"])
    container.runtime = session.runtime = harness.script("noting", 'echo "$@" >&2; exit 1')
    if kind == "exec":
        call, where = session.begin(*options), session.directory
    else:
        call, where = container.create(*options), container.directory
    line = call.sync.value()["message"].strip()
    for name, text in (
        ("SPEC", str(session.spec)),
        ("P", str(where / "pidfile")),
        ("B", str(where)),
        ("CID", container.cid),
    ):
        expected = re.sub(rf"(?<= ){name}(?= |$)", text, expected)
    assert line == expected


def test_the_console_comes_last_but_the_id(harness: Harness) -> None:
    container = harness.container(["true"], terminal=True)
    container.runtime = harness.script("noting", 'echo "$@" >&2; exit 1')
    call = container.create("--runtime-opt", "--last", env={"TMPDIR": f"{harness.home}/"})
    words = call.sync.value()["message"].split()
    assert words[-4:-2] == ["--last", "--console-socket"]
    assert re.fullmatch(rf"{re.escape(str(harness.home))}/conmon-term\.\w{{6}}", words[-2])
    assert words[-1] == container.cid


def test_defaults_come_from_the_working_directory(harness: Harness) -> None:
    words = ["-c", CID, "-u", CID, "-r", str(harness.script("noting", 'echo "$@" >&2; exit 1'))]
    container = harness.container(["true"])
    argv = [str(harness.monitor), *words, "-l", "none", "--full-attach"]
    call = container.launch(argv, cwd=container.directory)
    said = call.sync.value()["message"].split()
    assert said[:3] == ["create", "--bundle", str(container.directory)]
    assert said[3:5] == ["--pid-file", str(container.directory / f"pidfile-{CID}")]


def test_flags_in_a_cluster(harness: Harness) -> None:
    container = harness.container(["cat"], terminal=True)
    argv = [word for word in container.create_argv() if word != "-t"]
    call = container.launch([*argv, "-ti"])
    assert call.sync.value()["data"] > 0


def test_a_flag_with_a_value_is_set(harness: Harness) -> None:
    container = harness.container(["true"])
    container.api = 0
    call = container.create("--api-version=1", "--full-attach=false")
    assert call.sync.value()["data"] > 0
    assert (container.directory / "attach").exists()


# --- log paths


@pytest.mark.parametrize("log", ["none", "off", "null", "none:", "off:/x"])
def test_no_log(harness: Harness, log: str) -> None:
    container = created(harness, log=[log])
    assert not container.log.path.exists()


def test_log_path_forms(harness: Harness) -> None:
    for form in ("{}", "k8s-file:{}", ":{}", "::{}", "k8s-file:{}:more"):
        container = harness.container(["echo", "hi"])
        container.run(log=[form.format(container.log.path)])
        container.wait_exit()
        assert container.log.text() == "hi\n", form
        container.delete()


def test_a_relative_log_path(harness: Harness) -> None:
    container = harness.container(["echo", "hi"])
    container.run(log=["ctr.log"], cwd=container.directory)
    container.wait_exit()
    assert container.log.text() == "hi\n"


def test_the_last_log_file_counts(harness: Harness) -> None:
    container = harness.container(["echo", "hi"])
    first = container.directory / "first.log"
    container.run(log=[str(first), "none", str(container.log.path)])
    container.wait_exit()
    assert container.log.text() == "hi\n"
    assert not first.exists()


# --- odd names and paths

NAMES = [
    "a b",
    "ünï",
    "%s%n%d",
    "-dash",
    "../x",
    "n" * 300,
    'q"uote',
    "new\nline",
    "\udcff\udcfe",
    "",
]


@target("2.1.6 refuses bytes that its locale has no characters for")
@pytest.mark.parametrize("name", NAMES)
def test_names_are_data(harness: Harness, name: str) -> None:
    container = harness.container(["sh", "-c", "echo hi; exit 3"])
    argv = container.create_argv(f"--name={name}", "--log-tag", "")
    argv = argv[: argv.index("--log-tag")]
    assert container.launch(argv).sync.value()["data"] > 0
    container.start()
    assert container.wait_exit() == "3"
    assert os.listdir(container.exit_dir) == [container.cid]


@target("2.1.6 refuses bytes that its locale has no characters for")
@pytest.mark.parametrize(
    ("folder", "locale"),
    [
        ("with space", {}),
        ("new\nline", {}),
        *(("\udcff\udcfe ünï %s", {"LC_ALL": name}) for name in ("", "C", "C.UTF-8", "nope")),
    ],
)
def test_paths_are_bytes(harness: Harness, folder: str, locale: dict[str, str]) -> None:
    harness.home = harness.home / folder
    harness.home.mkdir()
    container = harness.container(["true"])
    container.runtime = harness.script("noting", 'cat "$3/said" >&2; exit 1')
    (container.directory / "said").write_text("found")
    call = container.create(env=locale)
    assert call.sync.value() == {"data": -1, "message": "found"}
    assert container.log.path.exists()


@pytest.mark.parametrize("folder", ["with space", "per%cent%s"])
def test_a_whole_life_in_an_odd_path(harness: Harness, folder: str) -> None:
    harness.home = harness.home / folder
    harness.home.mkdir()
    container = harness.container(["sh", "-c", "read x; echo $x; exit 3"])
    container.run("-i")
    client = container.attach()
    client.send(b"word\n")
    client.read_to_end()
    assert client.stream(2) == b"word\n"
    assert container.wait_exit() == "3"


@pytest.mark.parametrize("cid", ["x", "i" * 255])
def test_short_and_long_ids(harness: Harness, cid: str) -> None:
    container = harness.container(["true"])
    container.runtime = harness.script("noting", 'echo "$@" >&2; exit 1')
    argv = [cid if word == container.cid else word for word in container.create_argv()]
    assert container.launch(argv).sync.value()["message"].split()[-1] == cid


# --- the command under another name


def test_a_link_of_any_name_works(harness: Harness) -> None:
    link = harness.home / "conmon"
    link.symlink_to(harness.monitor)
    plain = Path(harness.monitor)
    harness.monitor = link
    assert run(harness, "--version").stdout.startswith("conmon version ")
    container = harness.running()
    comm = Path(f"/proc/{container.monitor_pid()}/comm").read_text()
    assert comm == "conmon\n"
    harness.monitor = plain
