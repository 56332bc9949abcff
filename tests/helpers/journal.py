"""A real systemd-journald in a mount namespace of its own; the machine's journal is not touched.

/run is a private tmpfs there. Programs that are to log to it start through `enter`, a command that
has the rest of its arguments run inside; a monitor can be such a program.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

from tests.helpers.need import need, need_program, need_root
from tests.helpers.waiting import wait_until

JOURNALD = Path("/lib/systemd/systemd-journald")
# Audit= (empty) leaves the kernel's audit switch alone, and another network namespace keeps it out
# of reach anyway.
CONFIG = """[Journal]
Storage=volatile
ReadKMsg=no
Audit=
RateLimitBurst=0
RuntimeMaxUse=64M
"""
SETUP = """
mount --make-rprivate / && mount -t tmpfs tmpfs /run || exit 99
mkdir -p /run/systemd/journal /run/systemd/journald.conf.d /run/log
printf '%s' "$1" >/run/systemd/journald.conf.d/test.conf
exec "$0"
"""


class Journal:
    """journald and its namespace; close() ends both."""

    def __init__(self, directory: Path) -> None:
        need_root()
        need(JOURNALD.exists(), "systemd-journald")
        need_program("journalctl")
        nsenter = need_program("nsenter")
        directory.mkdir(exist_ok=True)
        # It goes with us, should this process be killed.
        self._command = [need_program("setpriv"), "--pdeathsig", "KILL"]
        self._complaints = open(directory / "journald.err", "a+b")
        self._process = subprocess.Popen(
            [*self._command, need_program("unshare"), "-m", "-n"]
            + ["sh", "-c", SETUP, str(JOURNALD), CONFIG],
            stdin=subprocess.DEVNULL,
            stdout=self._complaints,
            stderr=self._complaints,
        )
        self._namespace = f"/proc/{self._process.pid}/ns/mnt"
        wait_until(self._serves, what="systemd-journald")
        self.enter = directory / "enter"
        self.enter.write_text(
            f'#!/bin/sh\nexec {nsenter} --mount={shlex.quote(self._namespace)} -- "$@"\n'
        )
        self.enter.chmod(0o755)

    def _serves(self) -> bool:
        if self._process.poll() is not None:
            self._complaints.seek(0)
            text = self._complaints.read().decode(errors="replace")
            need(self._process.returncode != 99, "the right to mount a tmpfs")
            need(False, f"a systemd-journald that starts here ({text[-300:]})")
        root = f"/proc/{self._process.pid}/root/run/systemd/journal/socket"
        # The name alone may be there before it is listened to.
        with open(f"/proc/{self._process.pid}/net/unix") as sockets:
            return os.path.exists(root) and " /run/systemd/journal/socket\n" in sockets.read()

    def wrap(self, program: Path) -> Path:
        """A command that is `program` run with this journal."""
        path = self.enter.with_name(program.name)
        path.write_text(f'#!/bin/sh\nexec {self.enter} {shlex.quote(str(program))} "$@"\n')
        path.chmod(0o755)
        return path

    def entries(self, *matches: str) -> list[dict[str, Any]]:
        """The entries that match (FIELD=value), oldest first; MESSAGE as bytes."""
        done = subprocess.run(
            [str(self.enter), "journalctl", "-o", "json", "--all", "--no-pager", "--quiet"]
            + ["--directory=/run/log/journal", *matches],
            capture_output=True,
            timeout=30,
            check=True,
        )
        found = [json.loads(line) for line in done.stdout.splitlines()]
        for one in found:
            message = one["MESSAGE"]  # a list of numbers if it is not plain text
            one["MESSAGE"] = message.encode() if isinstance(message, str) else bytes(message or [])
        return found

    def wait_entries(self, count: int, *matches: str) -> list[dict[str, Any]]:
        """entries(), once there are that many."""
        found: list[dict[str, Any]] = []

        def enough() -> bool:
            found[:] = self.entries(*matches)
            return len(found) >= count

        wait_until(enough, 30, f"{count} entries that match {matches}")
        return found

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._complaints.close()
