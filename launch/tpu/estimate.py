"""Estimates the time of a program compiled for a TPU from its text: arithmetic only, no JAX.

Nothing here was measured on a TPU. There are two estimates: a roofline, and the compiler's own
count of cycles, which includes layouts and padding. The roofline is not a strict bound: "bytes
accessed" includes those that never leave the chip's on-chip memory. Collectives are counted as if
nothing overlapped with them.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable

from data_pipelines.errors import InputError

HOP_SECONDS = 1e-6  # of a message to the next chip; an assumption, Google publishes no figure


@dataclasses.dataclass(frozen=True)
class Chip:
    """The peaks of one chip.

    Sources: cloud.google.com/tpu/docs, the pages v4, v5e, v5p and v6e. The clock is the peak over
    what the matrix units do in a cycle: 8 units of 128 x 128 a chip in v4 and v5p, 4 in v5e, and 4
    of 256 x 256 in v6e (a later edition of that page says 2).

    Attributes:
      flops: bfloat16 operations per second.
      memory_bytes: of HBM. Google writes GB; the compiler counts GiB.
      memory_bandwidth: of HBM, bytes per second.
      link_bandwidth: bytes per second that leave a chip over all of its links; half of what Google
        calls bidirectional.
      clock: cycles per second.
      torus: dimensions of the interconnect.
      cores: TensorCores; Google counts these in names such as v4-16 and v5p-128.
    """

    flops: float
    memory_bytes: int
    memory_bandwidth: float
    link_bandwidth: float
    clock: float
    torus: int
    cores: int


CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1.2e12, 300e9, 1.05e9, 3, 2),
    "v5e": Chip(197e12, 16 * 2**30, 0.819e12, 200e9, 1.5e9, 2, 1),
    "v5p": Chip(459e12, 95 * 2**30, 2.765e12, 600e9, 1.75e9, 3, 2),
    "v6e": Chip(918e12, 32 * 2**30, 1.638e12, 400e9, 1.75e9, 2, 1),
}

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_BYTES |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
_ARRAY = re.compile(rf"\b({'|'.join(_BYTES)})\[([\d,]*)\]")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\(")


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation of a program.

    Attributes:
      kind: one of `KINDS`.
      num_bytes: of its result on one chip.
      group: chips that take part.
      times: runs per step; operations in loops run more than once.
      name: the operation of the source that it belongs to.
    """

    kind: str
    num_bytes: int
    group: int
    times: int = 1
    name: str = ""

    def sent_bytes(self) -> float:
        """Returns the bytes that each chip must send, whatever the algorithm."""
        share = (self.group - 1) / self.group
        factor = {"all-reduce": 2 * share, "reduce-scatter": self.group - 1}
        return self.num_bytes * factor.get(
            self.kind, 1.0 if self.kind == "collective-permute" else share
        )

    def seconds(self, chip: Chip) -> float:
        """Returns the time of one run: bytes over all links of a chip, and hops in a torus."""
        hops = (
            chip.torus * self.group ** (1 / chip.torus) / 2
        )  # in all dimensions, in both directions
        rounds = 2 if self.kind == "all-reduce" else 1
        seconds: float = self.sent_bytes() / chip.link_bandwidth + rounds * hops * HOP_SECONDS
        return seconds


@dataclasses.dataclass(frozen=True)
class Program:
    """What the text of a compiled program says.

    Attributes:
      cycles: of a step on one chip, as the compiler estimates them, without collectives.
      collectives: all of them.
    """

    cycles: int
    collectives: tuple[Collective, ...]


def read_program(text: str, num_devices: int) -> Program:
    """Reads the optimized HLO of a TPU program, `compiled.as_text()`.

    Raises:
      ValueError: it has no entry computation.
    """
    computations, entry = _computations(text)
    cycles = 0
    # The parts of an asynchronous collective share its channel. Some may be in an unrelated loop,
    # so the collective runs as often as the part that runs least.
    found: dict[str, Collective] = {}

    def visit(name: str, times: int) -> None:
        nonlocal cycles
        for line in computations.get(name, ()):
            if match := re.search(r'"estimated_cycles":"(\d+)"', line):
                cycles += times * int(match[1])
            if match := _COLLECTIVE.search(line):
                channel = re.search(r"channel_id=(\d+)", line)
                key = channel[1] if channel else f"{name} {line}"
                if key not in found or times < found[key].times:
                    found[key] = _collective(match, line, times, num_devices)
            if loop := re.search(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)", line):
                visit(loop[2], times * _turns(computations.get(loop[1], ())))
            elif called := re.search(r"\bcalls=%?([\w.-]+)", line):
                visit(called[1], times)

    visit(entry, 1)
    return Program(cycles, tuple(found.values()))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if match := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line):
            lines = computations[match[2]] = []
            entry = match[2] if match[1] else entry
        else:
            lines.append(line)
    if not entry:
        raise InputError("the text of the compiled program has no entry computation")
    return computations, entry


def _turns(condition: Iterable[str]) -> int:
    """Returns how often a loop runs: it counts up to the one constant of its condition."""
    constants = re.findall(r"= s32\[\]\S* constant\((\d+)\)", "\n".join(condition))
    return int(constants[0]) if len(constants) == 1 else 1


def _collective(match: re.Match[str], line: str, times: int, num_devices: int) -> Collective:
    sizes = [
        _BYTES[dtype] * math.prod(int(x) for x in shape.split(",") if x)
        for dtype, shape in _ARRAY.findall(match[1])
    ]
    kind, start = match[2], match[3]
    # The start of an asynchronous gather or permutation also returns its operand.
    whole = max if start and kind in ("all-gather", "collective-permute") else sum
    source = re.search(r'op_name="([^"]*)"', line)
    return Collective(
        kind, whole(sizes), _group(line, num_devices), times, source[1] if source else ""
    )


def _group(line: str, num_devices: int) -> int:
    """Returns the number of chips of a group, in any of the notations of HLO."""
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}", line):
        axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        return math.prod(axes[name] for name in re.findall(r"'([^']+)'", mesh[2]))
    if tiled := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(tiled[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return listed[1].count(",") + 1
    return num_devices


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The seconds of a training step.

    Attributes:
      compute: flops over the chip's peak.
      memory: bytes accessed over the bandwidth of the chip's memory.
      cycles: the compiler's cycles over the chip's clock, or None if they are implausible.
      transfer: the collectives' bytes over the links, and their hops.
    """

    compute: float
    memory: float
    cycles: float | None
    transfer: float

    @property
    def roofline(self) -> float:
        """The time by the slower of arithmetic and memory, plus the collectives."""
        return max(self.compute, self.memory) + self.transfer

    @property
    def step(self) -> float:
        """The time by the compiler's cycles if they are plausible, else by the roofline."""
        return self.roofline if self.cycles is None else self.cycles + self.transfer


def estimate(chip: Chip, flops: float, num_bytes: float, program: Program) -> Estimate:
    """Estimates a step from what one chip does in it.

    Args:
      chip: its peaks.
      flops: of one chip, `cost_analysis()["flops"]`.
      num_bytes: of one chip, `cost_analysis()["bytes accessed"]`.
      program: of one chip.
    """
    compute = flops / chip.flops
    cycles = program.cycles / chip.clock
    return Estimate(
        compute=compute,
        memory=num_bytes / chip.memory_bandwidth,
        cycles=cycles if cycles > compute else None,
        transfer=sum(c.times * c.seconds(chip) for c in program.collectives),
    )


def summary(all_collectives: Iterable[Collective], chip: Chip) -> list[dict[str, float | str]]:
    """Returns collectives by kind and size of group: number, bytes and seconds per step."""
    groups = collections.defaultdict(list)
    for one in all_collectives:
        groups[one.kind, one.group].append(one)
    return [
        {
            "kind": kind,
            "group": group,
            "number": sum(one.times for one in ones),
            "bytes": sum(one.times * one.num_bytes for one in ones),
            "largest": max(one.num_bytes for one in ones),
            "seconds": sum(one.times * one.seconds(chip) for one in ones),
        }
        for (kind, group), ones in sorted(groups.items())
    ]
