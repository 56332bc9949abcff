"""Podman with one monitor and everything it keeps below one directory of the run.

`Podman(directory, monitor)` is one such engine: `run(...)` calls it, `close()` removes all its
containers and mounts. It uses root file systems instead of images, cgroupfs, no network and limits
that a machine without CAP_SYS_RESOURCE can set, so nothing but podman and runc is needed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.session import CGROUP_PARENT

CONTAINERS_CONF = """\
[containers]
log_driver = "k8s-file"
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
netns = "none"

[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
conmon_path = ["{monitor}"]
"""


@dataclass(frozen=True)
class Done:
    """A call that ended."""

    status: int
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        return self.out.decode(errors="surrogateescape")


class Podman:
    """An engine of its own. `name` is the monitor's: "conmon" or "pyconmon"."""

    def __init__(self, directory: Path, name: str, monitor: Path, rootfs: Path) -> None:
        self.directory, self.name, self.monitor, self.rootfs = directory, name, monitor, rootfs
        directory.mkdir(parents=True)
        conf = directory / "containers.conf"
        conf.write_text(CONTAINERS_CONF.format(monitor=monitor))
        storage = directory / "storage.conf"
        storage.write_text(
            f'[storage]\ndriver = "vfs"\nrunroot = "{directory}/rr"\ngraphroot = "{directory}/g"\n'
        )
        self.environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(directory),
            "TMPDIR": str(directory),
            "CONTAINERS_CONF": str(conf),
            "CONTAINERS_STORAGE_CONF": str(storage),
        }

    def command(self, *words: str | bytes) -> list[str | bytes]:
        return ["podman", "--tmpdir", f"{self.directory}/t", *words]

    def run(
        self,
        *words: str | bytes,
        stdin: bytes = b"",
        seconds: float = 60,
        pass_fds: Sequence[int] = (),
        env: dict[str, str] | None = None,
    ) -> Done:
        """Calls podman and waits for its end; AssertionError if it takes too long."""
        try:
            done = subprocess.run(
                self.command(*words),
                input=stdin,
                capture_output=True,
                timeout=seconds,
                env=self.environment | (env or {}),
                pass_fds=pass_fds,
            )
        except subprocess.TimeoutExpired as error:
            raise AssertionError(
                f"{self.name}: podman {words!r} did not end in {seconds} s: {error.stdout!r}"
            ) from None
        return Done(done.returncode, done.stdout, done.stderr)

    def must(self, *words: str | bytes, stdin: bytes = b"") -> str:
        """As run(), for calls that have to work: what they print, without the last newline."""
        done = self.run(*words, stdin=stdin)
        assert done.status == 0, f"{self.name}: podman {words!r}: {done.status}, {done.err!r}"
        return done.text.removesuffix("\n")

    def start(self, *words: str | bytes, options: Sequence[str] = ()) -> Done:
        """`podman run` of words on the root file system."""
        return self.run("run", *self.place(), *options, "--rootfs", str(self.rootfs), *words)

    def detached(self, name: str, *words: str, options: Sequence[str] = ()) -> str:
        """`podman run -d` under that name; the container's id."""
        return self.must(
            "run", "-d", "--name", name, *self.place(), *options, "--rootfs", str(self.rootfs), *words
        )  # fmt: skip

    @staticmethod
    def place() -> list[str]:
        """Options that put a container's cgroup below those of this run of the tests."""
        return ["--cgroup-parent", CGROUP_PARENT]

    def inspect(self, name: str, field: str) -> str:
        return self.must("inspect", name, "--format", "{{" + field + "}}")

    def spawn(self, *words: str) -> subprocess.Popen[bytes]:
        """A call that goes on; its streams are pipes."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self.command(*words), stdin=pipe, stdout=pipe, stderr=pipe, env=self.environment
        )

    def clean(self) -> None:
        """No container or pod is left."""
        self.run("pod", "rm", "-f", "-a", "-t", "0")
        self.run("rm", "-f", "-a", "-t", "0")

    def close(self) -> None:
        """Removes everything, mounts included."""
        self.clean()
        with open("/proc/self/mountinfo") as table:
            points = [line.split()[4] for line in table]
        for point in reversed(points):
            if point.startswith(str(self.directory)):
                subprocess.run(["umount", "-l", point], capture_output=True)
        remove_cgroups()

    def containers(self) -> list[str]:
        return self.must("ps", "-a", "--format", "{{.Names}}").split()


def remove_cgroups() -> None:
    """Podman makes cgroups for its monitors and pods beside those of containers, and leaves them."""
    hierarchies = Path("/sys/fs/cgroup")
    for parent in [*hierarchies.glob(f"*{CGROUP_PARENT}"), hierarchies / CGROUP_PARENT[1:]]:
        for found, _, _ in os.walk(parent, topdown=False):
            # Busy ones belong to what still runs; the check at the end of the run names them.
            with contextlib.suppress(OSError):
                os.rmdir(found)


def available() -> bool:
    """Whether podman can be asked for its version."""
    try:
        done = subprocess.run(["podman", "--version"], capture_output=True, env=dict(os.environ))
    except OSError:
        return False
    return done.returncode == 0
