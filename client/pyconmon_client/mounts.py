"""Mounts of an OCI bundle: the standard ones, and a caller's own, checked."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import InvalidArgumentError
from .values import check_absolute, check_size, check_text

_MODE = re.compile(r"[0-7]{1,4}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount. `kind` is "bind" or a file system type; `options` are those of the OCI mount
    object.
    """

    source: str
    destination: str
    kind: str = "bind"
    options: tuple[str, ...] = ("rbind", "ro", "nosuid", "nodev")

    @classmethod
    def bind(
        cls, source: str | os.PathLike[str], destination: str, *, read_only: bool = True
    ) -> Mount:
        """A file or directory of the host, read-only unless said otherwise; setuid and devices
        don't work in it.
        """
        mode = "ro" if read_only else "rw"
        return cls(os.fspath(source), destination, "bind", ("rbind", mode, "nosuid", "nodev"))

    @classmethod
    def tmpfs(cls, destination: str, *, size: int | str = "64m", mode: str = "1777") -> Mount:
        """An empty file system in memory of at most `size` bytes (they count as the container's).

        runc 1.1 gives it the mode of the directory it covers, if there is one, not `mode`.
        """
        if not _MODE.fullmatch(mode):
            raise InvalidArgumentError(
                f"mode: {mode!r}; give up to four octal digits such as '1777'"
            )
        options = ("nosuid", "nodev", f"mode={mode}", f"size={check_size('size', size)}")
        return cls("tmpfs", destination, "tmpfs", options)

    def as_oci(self) -> dict[str, Any]:
        return {
            "destination": self.destination,
            "type": self.kind,
            "source": self.source,
            "options": list(self.options),
        }


def check_mounts(mounts: Iterable[Mount | str | Mapping[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(mounts, (str, Mount, Mapping)):
        raise InvalidArgumentError(f"mounts: {mounts!r} is a single one; give a list")
    return [_check_mount(mount) for mount in mounts]


def _check_mount(mount: Mount | str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(mount, str):
        parts = check_text("mounts", mount).split(":")
        if len(parts) not in (2, 3) or (len(parts) == 3 and parts[2] not in ("ro", "rw")):
            raise InvalidArgumentError(
                f"mounts: {mount!r}; give 'source:destination', with ':ro' or ':rw' if need be"
            )
        mount = Mount.bind(parts[0], parts[1], read_only=parts[2:] != ["rw"])
    if isinstance(mount, Mount):
        mount = mount.as_oci()
    elif not isinstance(mount, Mapping):
        raise InvalidArgumentError(
            f"mounts: {mount!r}; give a Mount, 'source:destination' or an OCI mount object"
        )
    result = dict(mount)
    destination = check_absolute("mounts: destination", result.get("destination"))
    if os.path.normpath(destination) == "/":
        raise InvalidArgumentError(
            "mounts: destination '/' would hide the root file system; give another rootfs instead"
        )
    if result.get("type") == "bind":
        source = os.path.realpath(check_text("mounts: source", result.get("source")))
        if not os.path.exists(source):
            raise InvalidArgumentError(f"mounts: source {result['source']!r} does not exist")
        result["source"] = source
    return result


def standard_mounts(root: str, *, network: bool, rootless: bool, tmp: bool) -> list[dict[str, Any]]:
    # The terminal group (5 everywhere) has no mapping in a user namespace of one id.
    pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] + (
        [] if rootless else ["gid=5"]
    )
    mounts = [
        Mount("proc", "/proc", "proc", ("nosuid", "noexec", "nodev")),
        Mount("tmpfs", "/dev", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
        Mount("devpts", "/dev/pts", "devpts", tuple(pts)),
        Mount.tmpfs("/dev/shm"),
        Mount("mqueue", "/dev/mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    ]
    sys_options = ("nosuid", "noexec", "nodev", "ro")
    if rootless and network:
        # sysfs belongs to the network namespace; a user namespace may mount only one that it owns.
        mounts.append(Mount("/sys", "/sys", "bind", ("rbind", *sys_options)))
    else:
        mounts.append(Mount("sysfs", "/sys", "sysfs", sys_options))
    # Only where the directory is: the runtime would otherwise make one in the root file system.
    if tmp and os.path.isdir(os.path.join(root, "tmp")):
        mounts.append(Mount.tmpfs("/tmp"))
    return [mount.as_oci() for mount in mounts]
