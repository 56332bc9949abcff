"""A shim that ends at the worst of times: before, while and after its pid file is read. Every code is told.

Real monitors, and a runtime of a few lines of Perl, so that there can be many rounds: CLASSIC_ROUNDS in the
environment is their number (1000).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.helpers.monitors import monitor
from tests.helpers.need import need_program
from tests.helpers.wire import Wire

ROUNDS = int(os.environ.get("CLASSIC_ROUNDS", "1000"))
AT_ONCE = 8

# The shim is a child of the runtime, which does not wait for it (a shell would), and so of the monitor
# once that has ended; in "reaped" it is orphaned at once, ends while the runtime is at work, and the
# monitor has collected it by then. Perl, since it is everywhere and starts in 2 ms.
RUNTIME = r"""#!/usr/bin/perl
my ($pid_file, $when, $code) = ("", $ENV{WHEN}, $ENV{CODE});
for my $n (0 .. $#ARGV) { $pid_file = $ARGV[$n + 1] if $ARGV[$n] eq "--pid-file" }
sub state_of { open(my $stat, "<", "/proc/$_[0]/stat") or return ""; <$stat> =~ /\) (.)/; $1 }
sub put { open(my $out, ">", $pid_file) or die; print $out "$_[0]\n"; close($out) or die }
if ($when eq "reaped") {
    pipe(my $in, my $out);
    if (fork() == 0) {
        my $shim = fork();
        exit($code) if $shim == 0;
        syswrite($out, $shim);
        exit(0);
    }
    sysread($in, my $shim, 20);
    wait();
    select(undef, undef, undef, 0.001) while -e "/proc/$shim";
    put($shim);
    exit(0);
}
my $runtime = $$;
my $shim = fork();
if ($shim == 0) {
    if ($when eq "same") { 1 while getppid() == $runtime }
    if ($when eq "after") { sysread(STDIN, my $end, 1) }
    exit($code);
}
if ($when eq "zombie") { 1 while state_of($shim) ne "Z" }
put($shim);
"""
WAYS = ["reaped", "zombie", "same", "racing", "after"]


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], None]:
    """play(n): the n-th round; AssertionError if anything of it is not as it should be."""
    home = tmp_path_factory.mktemp("rounds")
    runtime = home / "runtime"
    runtime.write_text(RUNTIME)
    runtime.chmod(0o755)
    path = monitor("pyconmon")
    need_program("perl")

    def play(n: int) -> None:
        when = WAYS[n % len(WAYS)]
        kind = "create" if n // len(WAYS) % 2 else "exec"
        play_round(path, runtime, home / str(n), when, kind, n * 7 % 256)

    return play


def play_round(path: Path, runtime: Path, bundle: Path, when: str, kind: str, code: int) -> None:
    bundle.mkdir()
    what = f"{when} {kind} {code}"
    read_end, write_end = os.pipe()
    words: list[str | Path] = ["-c", "x", "-r", runtime, "-p", bundle / "pidfile"]
    words += ["-b", bundle] if kind == "create" else ["-e", "true"]
    variables = {"PATH": os.environ["PATH"], "WHEN": when, "CODE": str(code)}
    process = subprocess.Popen(
        [path, *words],
        env={**variables, "_OCI_SYNCPIPE": str(write_end)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[write_end],
        cwd=bundle,
    )
    os.close(write_end)
    sync = Wire(read_end)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if kind == "create":
            answer = sync.line(60)
            pid = int((bundle / "pidfile").read_text())
            assert answer == b'{"pid": %d}\n' % pid, what
        process.stdin.close()
        assert process.wait(60) == 0, what
        assert sync.rest(60) == (b"" if kind == "create" else b'{"exit_code": %d}\n' % code), what
        assert process.stdout.read() == b"", what
        files = {"pidfile", "exit"} if kind == "create" else {"pidfile"}
        assert {each.name for each in bundle.iterdir()} == files, what
        if kind == "create":
            assert (bundle / "exit").read_bytes() == b"%d" % code, what
    finally:
        sync.close()
        process.stdout.close()
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_shim_that_ends_when_it_wants(play: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert len(list(pool.map(play, range(ROUNDS)))) == ROUNDS


@pytest.mark.parametrize("way", range(2 * len(WAYS)))
def test_each_way(play: Callable[[int], None], way: int) -> None:
    """One round of each kind, also where there is no time for all."""
    play(1_000_000 + way)
