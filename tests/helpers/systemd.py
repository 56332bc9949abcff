"""A real systemd as PID 1 of namespaces of its own, for the length of one script.

`boot(directory, units, script)` starts it with the given unit files, runs the shell script in it as
a service and returns what the script printed and its exit status. Outside nothing changes: mounts,
pids, host name, cgroups and network are the guest's own, all of the file system is read-only for it
but the directory of this run of the tests, and /run, /tmp, /var/tmp and /var/log are empty places of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.helpers.monitors import ROOT
from tests.helpers.need import need, need_program, need_root
from tests.helpers.podman import remove_cgroups
from tests.helpers.session import SESSION_DIR, TOKEN

SYSTEMD = Path("/lib/systemd/systemd")
SECONDS = 60

# The first thing is to hide the machine's /run and /tmp: systemd clears them when it boots.
GUEST = """
set -eu
mount -t tmpfs -o mode=755 guest /run
mkdir /run/kept /run/checkout
mount --rbind "$SESSION" /run/kept
mount --rbind "$CHECKOUT" /run/checkout
for place in /tmp /var/tmp; do mount -t tmpfs -o mode=1777 guest $place; done
mount -t tmpfs -o mode=755 guest /var/log
mount -o remount,bind,ro /
# A checkout may be below one of the hidden places, too.
mkdir -p "$CHECKOUT"
mount --move /run/checkout "$CHECKOUT"
mount -o remount,bind,ro "$CHECKOUT"
mkdir -p "$SESSION"
mount --move /run/kept "$SESSION"
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /run/systemd/system
cp -r "$DIRECTORY"/units/. /run/systemd/system/
exec env -i PATH="$PATH" container=docker "$SYSTEMD" --system --unit=guest.service \\
    --log-target=null --show-status=no
"""

SERVICE = """
[Unit]
DefaultDependencies=no

[Service]
Type=oneshot
ExecStart=/bin/sh {directory}/script
StandardOutput=file:{directory}/out
StandardError=inherit
"""

SCRIPT = """
finish() {{ systemctl exit --no-block "$status"; }}
status=99
trap finish EXIT
(
{script}
)
status=$?
"""


def need_guest() -> None:
    """Whether systemd can be booted here."""
    need_root()
    need(SYSTEMD.exists(), "systemd")
    need_program("systemctl")
    need_program("systemd-notify")
    unshare = need_program("unshare")
    probe = subprocess.run([unshare, "-m", "-p", "-u", "-C", "-n", "-f", "--mount-proc", "true"])
    need(probe.returncode == 0, "mount, pid, cgroup and network namespaces")


def boot(directory: Path, units: dict[str, str], script: str) -> tuple[int, str]:
    """Boots a guest, runs the script, and shuts it down: the script's exit status and output."""
    need_guest()
    place = directory / "units"
    place.mkdir(parents=True)
    for name, text in units.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text)
    (place / "guest.service").write_text(SERVICE.format(directory=directory))
    (directory / "script").write_text(SCRIPT.format(script=script))
    (directory / "out").write_text("")
    cgroup = _cgroup()
    unshare = ["unshare", "-m", "-p", "-u", "-C", "-n", "-f", "--kill-child", "--mount-proc"]
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "SESSION": str(SESSION_DIR),
        "CHECKOUT": str(ROOT),
        "DIRECTORY": str(directory),
        "SYSTEMD": str(SYSTEMD),
    }
    # A cgroup of its own, so that what systemd makes of it can be removed.
    inside = f'echo $$ >"{cgroup}/cgroup.procs"; exec "$@"'
    command = ["sh", "-c", inside, "sh", *unshare, "--", "sh", "-c", GUEST]
    console = directory / "console"
    with console.open("wb") as sink:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
        )
    try:
        process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()  # the guest goes with it
        process.wait()
        raise AssertionError(
            f"the guest did not end in {SECONDS} s\n{_tail(console)}\n"
            + (directory / "out").read_text()
        ) from None
    finally:
        remove_cgroups()
        shutil.rmtree(place)
    print(_tail(console))  # pytest shows it with a failure
    return process.returncode, (directory / "out").read_text()


def _cgroup() -> Path:
    """A new cgroup of the unified hierarchy, below that of this run."""
    root = Path("/sys/fs/cgroup")
    unified = root if (root / "cgroup.controllers").exists() else root / "unified"
    need((unified / "cgroup.controllers").exists(), "a unified cgroup hierarchy")
    made = unified / TOKEN / f"guest-{os.getpid()}"
    made.mkdir(parents=True, exist_ok=True)
    return made


def _tail(console: Path) -> str:
    return console.read_bytes()[-20000:].decode(errors="replace")
