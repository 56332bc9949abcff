"""OCI bundles made from a root file system: a directory with a config.json that is safe for
untrusted programs.

Callers rely on `Bundle.from_rootfs()`, which checks every value before it writes anything, and on
the bundle being gone after `remove()` or the end of a `with` block. The config follows runtime-spec
1.0.2. The default is a sandbox: no network, read-only root, no new privileges, two capabilities,
masked paths, a seccomp profile, a pids limit. Out of scope: images, overlays, network set-up,
hooks. Edit `Bundle.config` and call `write()` for the rest.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from . import spec
from .errors import BundleError, InvalidArgumentError
from .mounts import Mount

__all__ = ["Bundle", "Mount"]


class Bundle:
    """A bundle directory on disk; `path` (absolute, real) is what runtimes and monitors take.

    As a context manager it is removed at the end of the block. Objects are cheap: `Bundle(path)`
    opens an existing bundle and raises BundleError if there is no readable config.json in it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: str = os.path.realpath(os.fspath(path))
        self._owned = False
        try:
            with open(self.config_path, "rb") as file:
                config = json.load(file)
        except OSError as error:
            raise BundleError(
                f"{self.path} is not a bundle: config.json: {error.strerror}"
            ) from error
        except ValueError as error:
            raise BundleError(
                f"{self.path} is not a bundle: config.json is not JSON: {error}"
            ) from error
        if not isinstance(config, dict):
            raise BundleError(f"{self.path} is not a bundle: config.json holds no JSON object")
        self.config: dict[str, Any] = config

    @classmethod
    def from_rootfs(
        cls,
        rootfs: str | os.PathLike[str],
        *,
        args: Sequence[str] = ("sh",),
        env: Mapping[str, str] | Iterable[str] | None = None,
        mounts: Iterable[Mount | str | Mapping[str, Any]] = (),
        memory: int | str | None = None,
        cpus: float | None = None,
        pids: int | None = None,
        read_only: bool = True,
        user: int | str | tuple[int, int] = 0,
        rootless: bool = False,
        terminal: bool = False,
        cwd: str = "/",
        hostname: str = "container",
        network: bool = False,
        capabilities: Iterable[str] | None = None,
        seccomp: bool | Mapping[str, Any] | None = None,
        runtime: str = "runc",
        directory: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Writes a bundle for one program in `rootfs` and returns it.

        args: the command, argv style. env: a mapping or `NAME=value` words; PATH and HOME are
        filled in. mounts: `Mount` objects, `"source:destination[:ro|rw]"` (ro if not given) or OCI
        mount objects; they come after the standard ones. memory: bytes, or text such as "64m"
        (binary k, m, g); swap is not added to it. cpus: how many, 1.5 for one and a half. pids:
        most processes and threads; None is 1024 (no limit when rootless, where cgroups often can't
        be used), 0 is no limit. read_only: the root file system; /tmp is then a tmpfs of 64 MiB, if
        the root file system has the directory and `mounts` doesn't. user: "uid", "uid:gid", a
        number or a pair; numbers only. rootless: map the calling user to root in a user namespace.
        network: True shares the host's network, False gives a namespace with nothing but loopback.
        capabilities: names such as "CAP_CHOWN" instead of the small default set (none for users but
        root). seccomp: None applies the default profile if `runtime` supports it, True insists,
        False leaves it out, a mapping is a profile of your own. directory: where config.json goes;
        made if it is missing, else a new temporary directory. A directory that was made here is
        removed as a whole, from another just config.json.

        Raises InvalidArgumentError for a value that can't be right, BundleError if the bundle can't
        be written.
        """
        root = os.path.realpath(os.fspath(rootfs))
        if not os.path.isdir(root):
            raise InvalidArgumentError(
                f"rootfs: {os.fspath(rootfs)!r} is not a directory; give a root file system"
            )
        config = spec.build(
            root,
            args=args,
            env=env,
            mounts=mounts,
            memory=memory,
            cpus=cpus,
            pids=pids,
            read_only=read_only,
            user=user,
            rootless=rootless,
            terminal=terminal,
            cwd=cwd,
            hostname=hostname,
            network=network,
            capabilities=capabilities,
            seccomp=seccomp,
            runtime=runtime,
        )
        return cls._create(config, directory)

    @classmethod
    def _create(cls, config: dict[str, Any], directory: str | os.PathLike[str] | None) -> Self:
        bundle = cls.__new__(cls)
        bundle.config = config
        try:
            if directory is None:
                path = tempfile.mkdtemp(prefix="pyconmon-bundle-")
                bundle._owned = True
            else:
                path = os.fspath(directory)
                try:
                    os.makedirs(path, mode=0o700)
                    bundle._owned = True
                except FileExistsError:
                    bundle._owned = False
            bundle.path = os.path.realpath(path)
            # Exclusive, so that a bundle which is in use is not changed under its container.
            with open(bundle.config_path, "x", encoding="utf-8") as file:
                file.write(bundle._text())
        except FileExistsError as error:
            raise BundleError(
                f"{error.filename}: exists already; give a directory without a bundle"
            ) from error
        except OSError as error:
            raise BundleError(
                f"bundle can't be written: {error.filename}: {error.strerror}"
            ) from error
        return bundle

    @property
    def config_path(self) -> str:
        """Path of the bundle's config.json."""
        return os.path.join(self.path, "config.json")

    @property
    def rootfs(self) -> str:
        """Absolute path of the root file system."""
        return os.path.join(self.path, str(self.config.get("root", {}).get("path", "rootfs")))

    @property
    def terminal(self) -> bool:
        """Whether the container's program gets a terminal."""
        return bool(self.config.get("process", {}).get("terminal", False))

    def process(self, args: Sequence[str], **changes: Any) -> dict[str, Any]:
        """The process object for a command run beside the main one, as `runtime exec --process`
        takes it.

        It is the main process's with other `args` and `terminal` false, so it has the same user,
        environment, capabilities and limits. `changes` are keys of the OCI process object that
        replace the copied ones.
        """
        base = dict(self.config.get("process", {}))
        # The size belongs to a terminal that this process doesn't have.
        base.pop("consoleSize", None)
        return {**base, "terminal": False, "args": spec.check_args(args), **changes}

    def write(self) -> None:
        """Writes `config` again after changes to it; readers see the old text or the new, never a
        part.
        """
        scratch = f"{self.config_path}.{os.getpid()}.tmp"
        try:
            with open(scratch, "x", encoding="utf-8") as file:
                file.write(self._text())
            os.replace(scratch, self.config_path)
        except OSError as error:
            raise BundleError(f"bundle can't be written: {scratch}: {error.strerror}") from error

    def _text(self) -> str:
        # Not pretty-printed: the runtime reads it at every start. Surrogates (undecodable path
        # bytes) can't be in JSON; saying so here is better than a runtime that looks for another
        # file.
        try:
            text = json.dumps(self.config, ensure_ascii=False, separators=(",", ":"))
            text.encode()
        except UnicodeEncodeError as error:
            around = error.object[max(0, error.start - 40) : error.end]
            raise BundleError(
                f"bundle can't be written: {around!r} is not UTF-8; JSON can't hold it"
            ) from error
        return text

    def remove(self) -> None:
        """Removes what `from_rootfs` made; a second call does nothing. Never touches the root file
        system.
        """
        if self._owned:
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            try:
                os.unlink(self.config_path)
            except OSError:
                pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __fspath__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        return f"Bundle({self.path!r})"
