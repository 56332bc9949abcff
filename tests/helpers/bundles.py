"""OCI bundles for the tests: a busybox root file system, and config.json around a command.

Every bundle's container gets a cgroup of its own below the parent of this test run, so that the
run can tell at its end what it left behind.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.helpers.need import need
from tests.helpers.session import CGROUP_PARENT, SESSION_DIR

Edit = Callable[[dict[str, Any]], object]

_ROOTFS = SESSION_DIR / "rootfs"
_FOLDERS = ("bin", "dev", "etc", "proc", "root", "run", "sys", "tmp")


def _busybox() -> str:
    path = shutil.which("busybox") or ""
    # A program with an interpreter needs libraries that the root file system does not have.
    static = path and b"/ld-linux" not in Path(path).read_bytes()[:4096]
    need(static, "a static busybox (Debian: busybox-static)")
    return path


def rootfs(directory: Path | None = None) -> Path:
    """A root file system of busybox and its applets.

    Without a directory it is the one all bundles share (made once, mounted read-only: leave it as
    it is); with one it is a fresh copy below that directory, to be changed at will.
    """
    where = _ROOTFS if directory is None else directory / "rootfs"
    if not (where / "bin/sh").exists():
        busybox = _busybox()
        for folder in _FOLDERS:
            (where / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(busybox, where / "bin/busybox")
        for applet in subprocess.check_output([busybox, "--list"], text=True).split():
            link = where / "bin" / applet
            if not link.exists():
                link.symlink_to("busybox")
        (where / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
        (where / "etc/group").write_text("root:x:0:\n")
    return where


def make_bundle(
    directory: Path | str, args: Sequence[str], terminal: bool = False, edit: Edit | None = None
) -> Path:
    """A bundle in that directory (made if need be) which runs args; returns its path.

    edit: gets the whole config as a dict and may change anything in it, see no_pid_namespace().
    """
    bundle = Path(directory)
    bundle.mkdir(parents=True, exist_ok=True)
    config = _config(bundle, list(args), terminal)
    if edit is not None:
        edit(config)
    (bundle / "config.json").write_text(json.dumps(config, indent=1))
    return bundle


def no_pid_namespace(config: dict[str, Any]) -> None:
    """An edit: pid 1 of a namespace ignores TERM and INT; to die by a signal do without one."""
    namespaces = config["linux"]["namespaces"]
    config["linux"]["namespaces"] = [each for each in namespaces if each["type"] != "pid"]


def writable(root: Path) -> Edit:
    """An edit: the given root file system (of rootfs(directory)), writable."""

    def edit(config: dict[str, Any]) -> None:
        config["root"] = {"path": str(root), "readonly": False}

    return edit


def process_spec(args: Sequence[str], terminal: bool = False, **more: Any) -> dict[str, Any]:
    """The process object of OCI: for an exec's --exec-process-spec."""
    capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
    return {
        "terminal": terminal,
        "user": {"uid": 0, "gid": 0},
        "args": list(args),
        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
        "cwd": "/",
        "capabilities": {
            kind: capabilities for kind in ("bounding", "effective", "permitted", "ambient")
        },
        "noNewPrivileges": True,
        **more,
    }


def _config(bundle: Path, args: list[str], terminal: bool) -> dict[str, Any]:
    quiet = ["nosuid", "noexec", "nodev"]
    return {
        "ociVersion": "1.0.2",
        "process": process_spec(args, terminal),
        "root": {"path": str(rootfs()), "readonly": True},
        "hostname": "container",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
            },
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
            },
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": quiet},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmp", "options": ["nosuid"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*quiet, "ro"]},
        ],
        "linux": {
            "cgroupsPath": f"{CGROUP_PARENT}/{_cgroup_name(bundle)}",
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"],
        },
    }


def _cgroup_name(bundle: Path) -> str:
    return f"{bundle.name[:40]}-{zlib.crc32(os.fsencode(bundle.absolute())):08x}"
