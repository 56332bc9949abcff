"""Random sessions through both monitors. What hypothesis found once stays as an explicit example."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from tests.differential.conftest import Pair
from tests.differential.sessions import Script

SIZES = [0, 1, 2, 60, 4095, 4096, 8190, 8191, 8192, 8193, 16383, 16384, 16385, 65535, 65537]


@dataclass(frozen=True)
class Write:
    """One write of the container: a run of a byte, and how it ends."""

    stream: int
    size: int
    byte: str
    ending: str

    def shell(self) -> str:
        text = f"head -c {self.size} /dev/zero | tr '\\0' '{self.byte}'" if self.size else ":"
        return f"{{ {text}; printf '{self.ending}'; }} >&{self.stream}"


writes = st.builds(
    Write,
    stream=st.sampled_from([1, 1, 2]),
    size=st.sampled_from(SIZES) | st.integers(0, 300),
    byte=st.sampled_from(["x", "\\377", "\\001", "\\r", " ", "\\n"]),
    ending=st.sampled_from(["\\n", "", "\\r\\n", "\\000", "\\n\\n"]),
)
# With a limit in force it matters for the costs where a line is cut, so each line is one small write.
lines = st.builds(
    Write,
    stream=st.just(1),
    size=st.integers(0, 60),
    byte=st.just("x"),
    ending=st.just("\\n"),
)
limits = st.sampled_from(["--log-size-max", "--log-global-size-max"])
endings = st.one_of(
    st.integers(0, 255).map(lambda code: f"exit {code}"),
    st.sampled_from([1, 6, 9, 11, 15]).map(lambda number: f"kill -{number} $$; sleep 9"),
)


@st.composite
def free_scripts(draw: st.DrawFn) -> Script:
    steps = draw(st.lists(writes, max_size=6))
    kind = draw(st.sampled_from(["create", "create", "exec", "exec-attach"]))
    terminal = draw(st.booleans()) and all(step.byte != "\\001" for step in steps)
    return Script(
        ["sh", "-c", "\n".join([*(step.shell() for step in steps), draw(endings)])],
        kind=kind,
        api=1 if kind == "exec-attach" else draw(st.sampled_from([0, 1])),
        terminal=terminal,
        clients={"create": draw(st.integers(0, 3)), "exec": 0, "exec-attach": 1}[kind],
        own_pid_namespace=False,
    )


@st.composite
def limited_scripts(draw: st.DrawFn) -> Script:
    steps = draw(st.lists(lines, min_size=1, max_size=12))
    limit = [draw(limits), str(draw(st.integers(1, 600)))]
    shell = [
        f"head -c {s.size} /dev/zero | tr '\\0' x >/tmp/l; echo >>/tmp/l; cat /tmp/l" for s in steps
    ]
    return Script(["sh", "-c", "\n".join(shell)], options=limit, clients=1)


@st.composite
def input_scripts(draw: st.DrawFn) -> Script:
    data = draw(st.sampled_from(SIZES)) * draw(st.sampled_from([b"a", b"\0", b"\xff", b"ab\n"]))
    command = draw(st.sampled_from(["cat", "md5sum", "wc -c", "head -c 5", "cat >&2", "true"]))
    kind = draw(st.sampled_from(["create", "exec-attach"]))
    return Script(
        ["sh", "-c", f"{command}; exit {draw(st.integers(0, 9))}"],
        kind=kind,
        stdin=data,
        clients=draw(st.integers(1, 3)) if kind == "create" else 1,
    )


def few(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )


@few(15)
@given(free_scripts())
@example(Script(["sh", "-c", "printf 'a\\r\\n\\r'"], terminal=True, clients=1))
@example(Script(["sh", "-c", "head -c 8192 /dev/zero; echo; exit 1"], kind="exec", api=0))
def test_output(pair: Pair, script: Script) -> None:
    assert pair.differences(script) == []


@few(8)
@given(limited_scripts())
def test_limits(pair: Pair, script: Script) -> None:
    assert pair.differences(script) == []


@few(8)
@given(input_scripts())
def test_input(pair: Pair, script: Script) -> None:
    assert pair.differences(script) == []
