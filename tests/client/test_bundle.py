"""Bundles: what from_rootfs writes, what runc makes of it, and what it refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pyconmon_client import seccomp
from pyconmon_client.bundle import Bundle
from pyconmon_client.errors import BundleError, InvalidArgumentError
from pyconmon_client.mounts import Mount
from tests.helpers.bundles import rootfs
from tests.helpers.need import need, need_root
from tests.helpers.session import CGROUP_PARENT, TOKEN

Run = Callable[..., "subprocess.CompletedProcess[str]"]

_STRINGS = {"type": "array", "items": {"type": "string"}}
_ID = {"type": "integer", "minimum": 0, "maximum": 2**32 - 2}
_PATH = {"type": "string", "pattern": "^/"}
_PATHS = {"type": "array", "items": _PATH}


def _closed(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
    }


def _many(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


_MAPPING = _many(
    _closed(["containerID", "hostID", "size"], containerID=_ID, hostID=_ID, size={"minimum": 1})
)
_SYSCALL = _closed(
    ["names", "action"],
    names={**_STRINGS, "minItems": 1, "uniqueItems": True},
    action={"enum": ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"]},
    errnoRet={"type": "integer"},
    args=_many(
        _closed(
            ["index", "value", "op"],
            index={"type": "integer", "minimum": 0, "maximum": 5},
            value={"type": "integer", "minimum": 0, "maximum": 2**64 - 1},
            valueTwo={"type": "integer", "minimum": 0},
            op={"enum": ["SCMP_CMP_EQ", "SCMP_CMP_MASKED_EQ"]},
        )
    ),
)
# What runtime-spec 1.0 allows, of the parts that from_rootfs writes; closed, so that a misspelt key
# shows.
SCHEMA = _closed(
    ["ociVersion", "root", "process", "mounts", "linux"],
    ociVersion={"const": "1.0.2"},
    root=_closed(["path"], path=_PATH, readonly={"type": "boolean"}),
    hostname={"type": "string"},
    process=_closed(
        ["cwd", "args"],
        terminal={"type": "boolean"},
        user=_closed(["uid", "gid"], uid=_ID, gid=_ID),
        args={**_STRINGS, "minItems": 1},
        env=_many({"type": "string", "pattern": "^[^=]+="}),
        cwd=_PATH,
        noNewPrivileges={"type": "boolean"},
        capabilities=_closed(
            [],
            **{
                kind: _many({"type": "string", "pattern": "^CAP_[A-Z_]+$"})
                for kind in ("bounding", "permitted", "effective", "inheritable", "ambient")
            },
        ),
        rlimits=_many(
            _closed(
                ["type", "soft", "hard"],
                type={"type": "string", "pattern": "^RLIMIT_[A-Z]+$"},
                soft={"type": "integer", "minimum": 0},
                hard={"type": "integer", "minimum": 0},
            )
        ),
    ),
    mounts=_many(
        _closed(
            ["destination"],
            destination=_PATH,
            type={"type": "string"},
            source={"type": "string"},
            options=_STRINGS,
        )
    ),
    linux=_closed(
        [],
        namespaces=_many(
            _closed(
                ["type"],
                type={"enum": ["mount", "pid", "network", "uts", "ipc", "user", "cgroup"]},
            )
        ),
        uidMappings=_MAPPING,
        gidMappings=_MAPPING,
        maskedPaths=_PATHS,
        readonlyPaths=_PATHS,
        cgroupsPath=_PATH,
        resources=_closed(
            [],
            devices=_many(
                _closed(["allow"], allow={"type": "boolean"}, access={"pattern": "^[rwm]+$"})
            ),
            memory=_closed([], limit={"type": "integer"}, swap={"type": "integer"}),
            cpu=_closed([], quota={"type": "integer"}, period={"type": "integer", "minimum": 1000}),
            pids=_closed(["limit"], limit={"type": "integer"}),
        ),
        seccomp=_closed(
            ["defaultAction"],
            defaultAction={"const": "SCMP_ACT_ERRNO"},
            defaultErrnoRet={"type": "integer"},
            architectures=_many({"type": "string", "pattern": "^SCMP_ARCH_"}),
            syscalls={**_many(_SYSCALL), "minItems": 1},
        ),
    ),
)


@pytest.fixture
def run(runc: Path, tmp_path: Path) -> Iterator[Run]:
    """Runs a bundle made with these arguments to its end, by runc alone."""
    need_root()
    bundles: list[Bundle] = []

    def run(*args: str, **settings: Any) -> subprocess.CompletedProcess[str]:
        bundle = Bundle.from_rootfs(settings.pop("root", rootfs()), args=args, **settings)
        bundles.append(bundle)
        name = f"{TOKEN}-bundle-{len(bundles)}"
        bundle.config["linux"]["cgroupsPath"] = f"{CGROUP_PARENT}/{name}"
        bundle.write()
        jsonschema.validate(bundle.config, SCHEMA)
        return subprocess.run(
            [runc, "run", "--bundle", bundle.path, name],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    yield run
    for bundle in bundles:
        bundle.remove()


def test_a_default_bundle_is_a_sandbox(run: Run) -> None:
    script = """
        grep -E '^(CapEff|CapBnd|CapInh|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status
        ls /sys/class/net; hostname; cat /proc/timer_list /proc/kcore | wc -c
        touch /x /proc/sys/kernel/domainname; touch /tmp/x && echo tmp
        mount -t tmpfs none /tmp; unshare -U true; echo "$HOME"; ulimit -c; ls /dev/sd* /dev/vd*
        [ -t 0 ] || echo no-terminal
    """
    done = run("sh", "-c", script)
    assert done.returncode == 0, done.stderr
    status = dict(line.split(":\t") for line in done.stdout.splitlines() if ":\t" in line)
    allowed = 1 << 5 | 1 << 10  # CAP_KILL, CAP_NET_BIND_SERVICE
    assert (int(status["CapEff"], 16), int(status["CapBnd"], 16)) == (allowed, allowed)
    assert (int(status["CapInh"], 16), int(status["CapAmb"], 16)) == (0, 0)
    assert status["NoNewPrivs"] == "1"
    if seccomp.supported("runc"):
        assert status["Seccomp"] == "2"
    rest = [line for line in done.stdout.splitlines() if ":\t" not in line]
    assert rest == ["lo", "container", "0", "tmp", "/", "0", "no-terminal"]
    assert done.stderr.count("Read-only file system") == 2, done.stderr


def test_settings_reach_the_program(run: Run, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/file").write_text("from the host\n")
    done = run(
        "sh",
        "-c",
        'pwd; id -u; id -g; hostname; echo "$A|$HOME"; cat /mnt/file; touch /mnt/new; touch /out/x',
        env={"A": "x=1 é", "HOME": "/root"},
        cwd="/etc",
        user="1000:1001",
        hostname="box",
        mounts=[f"{tmp_path}/shared:/mnt", Mount.tmpfs("/out", size="1m")],
        root=rootfs(tmp_path),
    )
    lines = done.stdout.splitlines()
    assert lines == ["/etc", "1000", "1001", "box", "x=1 é|/root", "from the host"], done.stderr
    assert "/mnt/new: Read-only" in done.stderr
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "shared/new").exists()


def test_a_writable_root_and_mount_are_written(run: Run, tmp_path: Path) -> None:
    root = rootfs(tmp_path)
    (tmp_path / "shared").mkdir()
    mount = Mount.bind(tmp_path / "shared", "/root", read_only=False)
    done = run(
        "sh", "-c", "echo 1 >/etc/x; echo 2 >/root/y", root=root, read_only=False, mounts=[mount]
    )
    assert done.returncode == 0, done.stderr
    assert (root / "etc/x").read_text() + (tmp_path / "shared/y").read_text() == "1\n2\n"


def test_limits_reach_the_cgroup(run: Run) -> None:
    script = """
        ulimit -n; dd if=/dev/zero of=/dev/null bs=200M count=1; echo "big $?"
        for i in 1 2 3 4 5 6 7 8 9; do sleep 100 & done; echo not reached
    """
    done = run("sh", "-c", script, memory="32m", cpus=0.5, pids=6)
    assert done.stdout == "1024\nbig 137\n", done.stderr
    assert "can't fork" in done.stderr


def test_the_seccomp_profile_stops_what_it_should_and_nothing_else(run: Run) -> None:
    need(seccomp.supported("runc"), "a runc with seccomp")
    # All capabilities, so that nothing but seccomp stands in the way.
    capabilities = ["CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_TIME", "CAP_MKNOD", "CAP_CHOWN"]
    script = """
        mount -t tmpfs none /mnt; echo "mount $?"; unshare -m true; echo "unshare $?"
        date -s 2001-01-01 >/dev/null; touch /tmp/f; chown 5 /tmp/f; echo "chown $?"
        nproc >/dev/null; echo "nproc $?"; (sleep 0; echo hi) | cat; mkfifo /tmp/p; echo "fifo $?"
        nc 127.0.0.1 1 </dev/null
    """
    done = run("sh", "-c", script, capabilities=capabilities)
    codes = dict(line.split() for line in done.stdout.splitlines() if " " in line)
    assert codes["mount"] != "0" and codes["unshare"] != "0"
    assert {codes[name] for name in ("chown", "nproc", "fifo")} == {"0"}, done.stderr
    assert "hi" in done.stdout
    assert "can't set date: Operation not permitted" in done.stderr
    assert "Connection refused" in done.stderr


def test_without_seccomp_the_same_mount_works(run: Run) -> None:
    done = run(
        "mount", "-t", "tmpfs", "none", "/tmp", capabilities=["CAP_SYS_ADMIN"], seccomp=False
    )
    assert done.returncode == 0, done.stderr


def test_a_rootless_bundle_works_for_an_ordinary_user() -> None:
    need_root()
    need(os.path.exists("/proc/self/ns/user"), "user namespaces")
    home = Path(f"/tmp/{TOKEN}/rootless")
    home.mkdir(parents=True)
    try:
        script = "id -u; cat /proc/self/uid_map"
        bundle = Bundle.from_rootfs(
            rootfs(home), args=["sh", "-c", script], directory=home / "b", rootless=True
        )
        jsonschema.validate(bundle.config, SCHEMA)
        # As that user would have made it; root can't become it in the middle of a test.
        for mapping in ("uidMappings", "gidMappings"):
            assert bundle.config["linux"][mapping][0]["hostID"] == 0
            bundle.config["linux"][mapping][0]["hostID"] = 65534
        bundle.write()
        for path in (home, *home.rglob("*")):
            os.chown(path, 65534, 65534, follow_symlinks=False)
        ordinary = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        runc = [
            "runc",
            "--root",
            f"{home}/state",
            "run",
            "--bundle",
            f"{home}/b",
            f"{TOKEN}-rootless",
        ]
        done = _output([*ordinary, *runc])
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["0", "0", "65534", "1"]
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _output(argv: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, cwd="/"
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"args": "echo hi"}, "args: 'echo hi'"),
        ({"args": []}, "args: no command"),
        ({"args": ["a\0b"]}, "NUL"),
        ({"args": ["a", 7]}, "args: 7 is int"),
        ({"env": ["NOVALUE"]}, "env: 'NOVALUE' has no '='"),
        ({"env": {"A=B": "x"}}, "env: 'A=B'"),
        ({"env": "A=B"}, "env: 'A=B' is one word"),
        ({"memory": "12 parsecs"}, "memory: '12 parsecs' is not a size"),
        ({"memory": 4096}, "memory: 4096 is too little"),
        ({"memory": -1}, "memory: -1 is out of range"),
        ({"memory": True}, "memory: True is bool"),
        ({"memory": 1.5}, "memory: 1.5 is float"),
        ({"cpus": 0}, "cpus: 0"),
        ({"cpus": float("nan")}, "cpus: nan"),
        ({"cpus": "2"}, "cpus: '2'"),
        ({"pids": -5}, "pids: -5"),
        ({"pids": 1.5}, "pids: 1.5"),
        ({"user": "nobody"}, "names are not looked up"),
        ({"user": -1}, "user: -1"),
        ({"user": 2**32 - 1}, "user: 4294967295"),
        ({"user": "1:2:3"}, "user: '1:2:3'"),
        ({"cwd": "tmp"}, "cwd: 'tmp' is not absolute"),
        ({"hostname": "a b"}, "hostname: 'a b'"),
        ({"hostname": "a\n"}, "hostname"),
        ({"mounts": "/a:/b"}, "mounts: '/a:/b' is a single one"),
        ({"mounts": ["/a"]}, "mounts: '/a'; give 'source:destination'"),
        ({"mounts": ["/nowhere/at/all:/b"]}, "'/nowhere/at/all' does not exist"),
        ({"mounts": ["/etc:b"]}, "destination: 'b' is not absolute"),
        ({"mounts": ["/etc:/."]}, "would hide the root"),
        ({"mounts": ["/etc:/b:rx"]}, "':ro' or ':rw'"),
        ({"capabilities": ["chown"]}, "'chown' is not a capability"),
        ({"capabilities": "CAP_CHOWN"}, "is one word"),
        ({"seccomp": {}}, "no defaultAction"),
    ],
)
def test_wrong_values_are_refused_in_one_line(
    settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        Bundle.from_rootfs(tmp_path, directory=tmp_path / "b", **settings)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "b").exists()


def test_a_rootfs_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="nothing-here' is not a directory"):
        Bundle.from_rootfs(tmp_path / "nothing-here")


def test_a_runtime_without_seccomp(tmp_path: Path) -> None:
    bundle = Bundle.from_rootfs(tmp_path, runtime="/bin/false", directory=tmp_path / "b")
    assert "seccomp" not in bundle.config["linux"]
    with pytest.raises(BundleError, match="/bin/false"):
        Bundle.from_rootfs(tmp_path, runtime="/bin/false", seccomp=True)


@pytest.mark.parametrize(
    ("size", "number"), [("64m", 64 << 20), ("1G", 1 << 30), ("512KiB", 512 << 10), ("77 ", 77)]
)
def test_sizes(size: str, number: int) -> None:
    assert f"size={number}" in Mount.tmpfs("/x", size=size).options


def test_rootfs_is_resolved_and_never_removed(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "link").symlink_to("root")
    with Bundle.from_rootfs(tmp_path / "link") as bundle:
        assert bundle.rootfs == str(tmp_path / "root")
        assert os.listdir(bundle.path) == ["config.json"]
        assert Bundle(bundle.path).config == bundle.config
    assert not os.path.exists(bundle.path)
    bundle.remove()
    assert (tmp_path / "root").is_dir()


def test_a_directory_that_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/mine").touch()
    bundle = Bundle.from_rootfs(tmp_path, directory=tmp_path / "b")
    with pytest.raises(BundleError, match="exists already"):
        Bundle.from_rootfs(tmp_path, directory=tmp_path / "b")
    bundle.remove()
    assert os.listdir(tmp_path / "b") == ["mine"]


@pytest.mark.parametrize("text", [None, "", "[]", "{"])
def test_what_is_no_bundle(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(BundleError, match="is not a bundle"):
        Bundle(tmp_path)


def test_undecodable_paths_are_refused_not_mangled(tmp_path: Path) -> None:
    root = tmp_path / os.fsdecode(b"r\xff")
    root.mkdir()
    with pytest.raises(BundleError, match="not UTF-8"):
        Bundle.from_rootfs(root, directory=tmp_path / "b")


def test_exec_processes_inherit_the_sandbox(tmp_path: Path) -> None:
    bundle = Bundle.from_rootfs(tmp_path, user=7, terminal=True, directory=tmp_path / "b")
    process = bundle.process(["id"], cwd="/tmp")
    assert process["args"] == ["id"] and process["cwd"] == "/tmp" and not process["terminal"]
    assert process["noNewPrivileges"] and process["user"] == {"uid": 7, "gid": 7}
    assert bundle.terminal
