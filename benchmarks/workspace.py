"""The place a run works in: a rootfs of busybox, bundles with their logs, a runc with its own state.

Everything below `Workspace.root` (in TMPDIR) vanishes with `close()`. As root the harness runs in a
private mount namespace (see `enter_namespace`), so that the false journal is not seen outside.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

INSIDE = "PYCONMON_BENCH_NAMESPACE"
Edit = Callable[[dict[str, Any]], None]


def enter_namespace() -> None:
    """Runs this program again in a mount namespace of its own, if that is possible."""
    if os.environ.get(INSIDE) or os.geteuid() != 0:
        return
    unshare = shutil.which("unshare")
    if unshare and subprocess.run([unshare, "-m", "true"], capture_output=True).returncode == 0:
        os.environ[INSIDE] = "1"
        arguments = [unshare, "-m", "--propagation", "private", sys.executable, "-m", "benchmarks"]
        os.execv(unshare, [*arguments, *sys.argv[1:]])


class Workspace:
    """Directories and files for one run. Make it, use it, `close()` it."""

    def __init__(self) -> None:
        # On a file system as real logs are, which is slower for small writes than a tmpfs.
        self.root = Path(tempfile.mkdtemp(prefix="pyconmon-bench-"))
        self.rootfs = self.root / "rootfs"
        self.exits = self.root / "exits"
        self.exits.mkdir()
        self.runc = self._runc_with_own_state()
        self._rootfs()
        self._bundles = 0

    def close(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def bundle(self, args: list[str], edit: Edit | None = None) -> Path:
        """A new bundle, named by its container's id, that runs `args` on the shared rootfs."""
        self._bundles += 1
        path = self.root / f"bench{self._bundles:04d}"
        path.mkdir()
        config = _config(args, self.rootfs)
        if edit:
            edit(config)
        (path / "config.json").write_text(json.dumps(config))
        return path

    def blob(self, name: str, pattern: bytes, size: int) -> str:
        """A file of about `size` bytes, `pattern` repeated; its path for a container."""
        path = self.rootfs / name
        if not path.exists():
            path.write_bytes(pattern * (size // len(pattern)))
        return f"/{name}"

    def _runc_with_own_state(self) -> Path:
        runc = shutil.which("runc") or "/usr/sbin/runc"
        path = self.root / "runc"
        path.write_text(f'#!/bin/sh\nexec {runc} --root {self.root}/state "$@"\n')
        path.chmod(0o755)
        return path

    def _rootfs(self) -> None:
        for name in ("bin", "proc", "sys", "dev", "tmp", "etc"):
            (self.rootfs / name).mkdir(parents=True)
        busybox = shutil.which("busybox")
        if busybox is None:
            raise SystemExit("benchmarks: busybox (static) is needed for the containers")
        shutil.copy(busybox, self.rootfs / "bin/busybox")
        for applet in ("sh", "true", "sleep", "dd", "seq", "cat"):
            (self.rootfs / "bin" / applet).symlink_to("busybox")


def mount_tmpfs(path: Path, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "pyconmon-bench", str(path)]
    return subprocess.run(command, capture_output=True).returncode == 0


def _config(args: list[str], rootfs: Path) -> dict[str, Any]:
    mounts = [
        ("/proc", "proc", "proc", ["nosuid"]),
        ("/dev", "tmpfs", "tmpfs", ["nosuid", "mode=755"]),
    ]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/bin"],
            "cwd": "/",
        },
        "root": {"path": str(rootfs), "readonly": True},
        "hostname": "bench",
        "mounts": [
            {"destination": where, "type": kind, "source": source, "options": options}
            for where, kind, source, options in mounts
        ],
        "linux": {
            "resources": {"devices": [{"allow": True, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")],
        },
    }
