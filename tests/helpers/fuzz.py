"""Packed files, mutated: each must give a clean error or a network, in bounded time and memory.

Run: python tests/fuzz.py --files 100000 --out results/artifact/fuzz.json

Four kinds of damage, from the outside in: to the bytes of the file; to a stored section, its
checksum made right again; to an unpacked section, packed again with sizes and checksum made right;
and to the ONNX file itself, packed anew so that its hash is right too. The first three must end in
an error or in the right network, since the hash of the ONNX file is in the file; the last may end
in another network, which is then run. A file that ends otherwise, that kills its process, or that
takes longer or more memory than the limits below is a finding.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from helpers.artifacts import MADE, packed, quantized
from secateur import environment
from secateur.artifact.classifier import Classifier
from secateur.artifact.container import Section, read_sections, write_sections
from secateur.artifact.packing import TAGS, _squeezed, _unsqueezed, pack, unpack
from secateur.errors import SecateurError

SECONDS = 20
"""That one file may take; the slowest is recorded."""
MEBIBYTES = 512
"""That a process may grow by over all its files; what the worst grew by is recorded."""


class TooSlowError(Exception):
    """A file took too long."""


def mutated(data: bytes, rng: random.Random) -> bytes:
    """``data`` with one to four bytes flipped, replaced, inserted, cut out, moved or repeated."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, length = rng.randrange(len(changed) + 1), rng.choice((1, 1, 2, 4, 16))
        part = changed[at : at + length]
        match rng.randrange(7):
            case 0 if part:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at : at + length] = rng.randbytes(len(part))
            case 2:
                changed[at:at] = rng.randbytes(length)
            case 3:
                del changed[at : at + length]
            case 4:
                del changed[at : at + length]
                to = rng.randrange(len(changed) + 1)
                changed[to:to] = part
            case 5:
                changed[at:at] = part
            case 6:
                changed[at : at + len(part)] = rng.choice((b"\0", b"\xff", b"\x7f")) * len(part)
    return bytes(changed)


def mutated_numbers(text: bytes, rng: random.Random) -> bytes:
    """JSON with one number replaced by one that is large, negative, or of another type."""
    starts = [i for i, byte in enumerate(text) if chr(byte).isdigit()]
    at = rng.choice(starts)
    other = rng.choice(
        (b"0", b"-1", b"1.5", b"1e9", b"4294967296", b"99", b"[]", b"null", b"1e999")
    )
    return text[:at] + other + text[at + 1 :]


def outside(name: str, rng: random.Random) -> bytes:
    data = packed(name)
    if rng.random() < 0.1:
        return data[: rng.randrange(len(data))]
    return mutated(data, rng)


def stored(name: str, rng: random.Random) -> bytes:
    sections = read_sections(packed(name), TAGS)
    tag = rng.choice(TAGS)
    if rng.random() < 0.3:
        size = rng.choice(
            (0, 1, sections[tag].size - 1, sections[tag].size + 1, rng.randrange(2**32))
        )
        return write_sections(sections | {tag: replace(sections[tag], size=max(size, 0))})
    part = mutated(sections[tag].stored, rng)
    return write_sections(sections | {tag: Section(part, sections[tag].size)})


def inside(name: str, rng: random.Random) -> bytes:
    sections = read_sections(packed(name), TAGS)
    tag = rng.choice(("ABOU", "REST", "REST"))
    part = _unsqueezed(sections[tag])
    if tag == "REST" and rng.random() < 0.5:
        line, _, rest = part.partition(b"\n")
        line = mutated_numbers(line, rng) if rng.random() < 0.7 else mutated(line, rng)
        part = line + b"\n" + rest
    else:
        part = mutated(part, rng)
    return write_sections(sections | {tag: _squeezed(part)})


def network(name: str, rng: random.Random) -> bytes:
    return pack(mutated(quantized(name), rng), {})


KINDS: dict[str, Callable[[str, random.Random], bytes]] = {
    "outside": outside, "stored": stored, "inside": inside, "network": network,
}  # fmt: skip


OFTEN = {"outside": 4, "stored": 3, "inside": 2, "network": 1}
"""How often each kind is tried: the further in, the longer it takes."""


def outcome(kind: str, name: str, data: bytes) -> str:
    """What a file came to; anything but these strings is an exception, and a finding.

    Raises:
        AssertionError: Another network than the right one came of damage that the hash must show.
    """
    try:
        unpacked = unpack(data)
        same = unpacked.onnx == quantized(name)
        assert same or kind == "network", "another network"
        if not same:
            classifier = Classifier(unpacked.onnx, unpacked.about, 1)
            side = classifier.prepare.resolution
            scores = classifier(np.zeros((2, classifier.channels, side, side), np.uint8))
            assert scores.shape == (2, len(classifier.classes))
    except SecateurError as error:
        return f"error: {error.what.rpartition(': ')[2][:40]}"
    return "the right network" if same else "another network, which ran"


def fuzz(
    count: int,
    seed: int,
    kinds: tuple[str, ...] = tuple(KINDS),
    names: tuple[str, ...] = tuple(MADE),
) -> dict[str, Any]:
    """Mutate and open ``count`` files in this process.

    Returns:
        Counts by kind and outcome, the slowest file in seconds, and the growth of the process's
        peak memory in MiB, both with the network concerned.
    """
    rng, seen, slowest = random.Random(seed), Counter[str](), 0.0
    for name in names:
        Classifier(unpack(packed(name)).onnx, {}, 1)  # what any file needs, once
    before = _restart_peak()
    signal.signal(signal.SIGALRM, _stop)
    while (number := seen.total()) < count:
        kind = rng.choices(kinds, [OFTEN[k] for k in kinds])[0]
        name = "micro" if rng.random() < 0.9 else rng.choice(names)
        try:
            data = KINDS[kind](name, rng)
        except SecateurError:  # no ONNX file any more, and so no packed one
            continue
        start = time.perf_counter()
        signal.alarm(SECONDS)
        try:
            seen[f"{kind}: {outcome(kind, name, data)}"] += 1
        except BaseException as error:
            raise RuntimeError(f"file {number} of seed {seed}, {kind} {name}: {error!r}") from error
        finally:
            signal.alarm(0)
        slowest = max(slowest, time.perf_counter() - start)
    grown = (_peak() - before) / 2**10
    return {"seen": dict(seen), "slowest_seconds": slowest, "grown_mebibytes": grown}


def _peak() -> int:
    """The most memory that this process has held since the last restart, in KiB (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def _restart_peak() -> int:
    """Forget the peak of making the networks; return what is held now, in KiB (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return _peak()


def _stop(signum: int, frame: object) -> None:
    raise TooSlowError(f"more than {SECONDS} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--part", type=int, default=10_000, help="files a process opens")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    parts = [
        min(options.part, options.files - start) for start in range(0, options.files, options.part)
    ]
    seen, slowest, grown, start = Counter[str](), 0.0, 0.0, time.monotonic()
    # One task a process: a process that dies breaks the pool, and the run ends with its name.
    pool = ProcessPoolExecutor(
        options.processes, mp_context=get_context("spawn"), max_tasks_per_child=1
    )
    with pool:
        for result in pool.map(fuzz, parts, range(len(parts))):
            seen.update(result["seen"])
            slowest = max(slowest, result["slowest_seconds"])
            grown = max(grown, result["grown_mebibytes"])
            print(f"{sum(seen.values()):,} files, {time.monotonic() - start:.0f} s", flush=True)
    record = {
        "files": sum(seen.values()),
        "seen": dict(sorted(seen.items())),
        "slowest_seconds": round(slowest, 3),
        "largest_growth_mebibytes": round(grown, 1),
        "seconds": round(time.monotonic() - start, 1),
        "processor": environment.processor(),
        "versions": environment.versions(),
        "commit": environment.commit(),
    }
    assert grown < MEBIBYTES, f"a process grew by {grown:.0f} MiB"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
