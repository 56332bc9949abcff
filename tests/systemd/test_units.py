"""The units: valid for systemd, and a container that a real systemd starts, stops and judges."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.bundles import make_bundle, no_pid_namespace, rootfs
from tests.helpers.monitors import ROOT, monitor
from tests.helpers.need import need, need_program
from tests.helpers.systemd import boot, need_guest

UNITS = ROOT / "systemd"
QLEN = Path("/proc/sys/net/unix/max_dgram_qlen")
# Without their usual dependencies, which would start the machine's own services in the guest.
ALONE = "[Unit]\nDefaultDependencies=no\n"


def unit(name: str, prefix: Path) -> str:
    """The unit with its programs where this test has them."""
    text = (UNITS / name).read_text()
    return text.replace("/usr/local/lib/pyconmon/", f"{prefix}/").replace(
        "/usr/local/bin/pyconmon", str(monitor("pyconmon"))
    )


@pytest.mark.parametrize("name", sorted(path.name for path in UNITS.glob("*.service")))
def test_units_are_valid(name: str, tmp_path: Path) -> None:
    analyze = need_program("systemd-analyze")
    shutil.copy(UNITS / "run-bundle", tmp_path)
    path = tmp_path / name.replace("@", "@instance")
    path.write_text(unit(name, tmp_path))
    done = subprocess.run([analyze, "verify", "--man=no", "--recursive-errors=no", str(path)],
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def guest(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """guest(bundle name, script) -> status, output: the script in a guest with our units."""
    need_guest()
    runc = need_program("runc")
    shutil.copy(UNITS / "run-bundle", tmp_path)

    def run(script: str) -> tuple[int, str]:
        settings = (
            f"[Service]\nEnvironment=BUNDLE={tmp_path}/%i RUNTIME={runc}\n"
            f"Environment=LOG=k8s-file:{tmp_path}/%i/log\n"
            f"StandardError=append:{tmp_path}/said\n"
        )
        units = {
            "pyconmon@.service": unit("pyconmon@.service", tmp_path),
            "pyconmon@.service.d/alone.conf": ALONE + settings,
            "pyconmon-recover@.service": unit("pyconmon-recover@.service", tmp_path),
            "pyconmon-recover@.service.d/alone.conf": ALONE,
        }
        limits = QLEN.read_text()
        found = boot(tmp_path, units, script)
        said = tmp_path / "said"
        print(said.read_text() if said.exists() else "the services said nothing")
        # The guest raises this limit for itself; the machine's must stay what it was.
        assert QLEN.read_text() == limits
        return found

    return run


def bundle(directory: Path, name: str, args: list[str], *edits: Callable[..., Any]) -> Path:
    def edit(config: dict[str, Any]) -> None:
        config["linux"]["cgroupsPath"] = f"/{name}"
        config["linux"]["resources"] = {}
        for change in edits:
            change(config)

    return make_bundle(directory / name, args, edit=edit)


def test_a_service_is_its_container(guest: Callable[..., Any], tmp_path: Path) -> None:
    """Started when it runs; its exit code is the service's; nothing is left of it afterwards."""
    bundle(tmp_path, "ends", ["sh", "-c", "echo from inside; exec sleep 0.5"])
    bundle(tmp_path, "fails", ["sh", "-c", "sleep 0.5; exit 23"])
    status, out = guest(
        """
        for name in ends fails; do
            systemctl start pyconmon@$name || exit 1
            while systemctl is-active --quiet pyconmon@$name; do sleep 0.05; done
            systemctl show pyconmon@$name -P Result -P ExecMainStatus | tr '\\n' ' '
        done
        runc list -q
        ls /run/pyconmon
        """
    )
    assert (status, out.split()) == (0, ["success", "0", "exit-code", "23"]), out
    assert (tmp_path / "ends/log").read_text().endswith(" stdout F from inside\n")


def test_stop_reaches_the_container(guest: Callable[..., Any], tmp_path: Path) -> None:
    script = "trap 'echo told; exit 0' TERM; echo up; while :; do sleep 0.05; done"
    bundle(tmp_path, "obeys", ["sh", "-c", script])
    status, out = guest(
        f"""
        systemctl start pyconmon@obeys || exit 1
        until grep -q up {tmp_path}/obeys/log; do sleep 0.05; done
        systemctl stop pyconmon@obeys
        systemctl show pyconmon@obeys -P Result -P ExecMainStatus -P ActiveState
        """
    )
    assert (status, out.split()) == (0, ["success", "0", "inactive"]), out
    assert (tmp_path / "obeys/log").read_text().endswith(" stdout F told\n")


def test_a_container_that_cannot_be_made_fails_the_service(
    guest: Callable[..., Any], tmp_path: Path
) -> None:
    bundle(tmp_path, "broken", ["/nope"])
    status, out = guest(
        """
        systemctl start pyconmon@broken 2>/dev/null; echo $?
        systemctl show pyconmon@broken -P Result -P ActiveState
        """
    )
    assert (status, out.split()[-3:]) == (0, ["1", "exit-code", "failed"]), out


def test_readiness_is_the_containers(guest: Callable[..., Any], tmp_path: Path) -> None:
    """With a folder `notify` the service starts when the container says so, and not before."""
    python = Path("/usr/bin/python3")
    need(python.exists(), "/usr/bin/python3 for a program that sends READY=1")
    root = rootfs(tmp_path / "own")
    for link in ("lib", "lib64"):
        if not (root / link).exists():
            (root / link).symlink_to(f"usr/{link}")
    (root / "usr").mkdir(exist_ok=True)
    program = (
        "import os, socket, time\n"
        "while not os.path.exists('/notify/go'): time.sleep(0.02)\n"
        "sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "sock.sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])\n"
        "time.sleep(99)\n"
    )

    def edit(config: dict[str, Any]) -> None:
        config["root"] = {"path": str(root), "readonly": False}
        config["process"]["env"].append("NOTIFY_SOCKET=/notify/notify.sock")
        for source, where in (("/usr", "/usr"), (f"{tmp_path}/ready/notify", "/notify")):
            config["mounts"].append(
                {"destination": where, "type": "bind", "source": source, "options": ["rbind"]}
            )

    made = bundle(tmp_path, "ready", [str(python), "-c", program], edit, no_pid_namespace)
    (made / "notify").mkdir()
    status, out = guest(
        f"""
        systemctl start --no-block pyconmon@ready
        until runc state ready 2>&1 | grep -q running; do sleep 0.05; done
        systemctl show pyconmon@ready -P ActiveState
        touch {made}/notify/go
        until [ "$(systemctl show pyconmon@ready -P ActiveState)" != activating ]; do sleep 0.05; done
        systemctl show pyconmon@ready -P ActiveState
        systemctl stop pyconmon@ready
        systemctl show pyconmon@ready -P Result
        """
    )
    assert (status, out.split()) == (0, ["activating", "active", "success"]), out


def test_recover_gives_a_new_monitor(guest: Callable[..., Any], tmp_path: Path) -> None:
    """The first monitor is killed; the one that the unit starts writes the true exit code."""
    bundle(tmp_path, "lost", ["sh", "-c", "until [ -e /dev/shm/end ]; do sleep 0.05; done; exit 7"])
    (tmp_path / "exits").mkdir()
    pyconmon, place = monitor("pyconmon"), tmp_path / "lost"
    status, out = guest(
        f"""
        {pyconmon} --api-version 1 -c lost -u lost -r $(command -v runc) -b {place} \\
            -p {place}/pidfile -P {place}/conmon.pid --exit-dir {tmp_path}/exits --full-attach \\
            -l k8s-file:{place}/log
        until [ -s {place}/pidfile ] && runc state lost >/dev/null 2>&1; do sleep 0.05; done
        runc start lost
        first=$(cat {place}/conmon.pid)
        kill -9 $first
        while kill -0 $first 2>/dev/null; do sleep 0.05; done
        systemctl start "pyconmon-recover@$(systemd-escape --path {tmp_path}).service" || exit 1
        until [ "$(cat {place}/conmon.pid)" != $first ]; do sleep 0.05; done
        runc exec lost touch /dev/shm/end
        until [ -e {tmp_path}/exits/lost ]; do sleep 0.05; done
        cat {tmp_path}/exits/lost
        """
    )
    assert (status, out) == (0, "7"), out
