"""Run a recipe from Python and read its records.

The built-in quickstart, on 400 images and for one epoch, into a temporary folder.
Run: python examples/run_a_recipe.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import secateur

CHANGES = [
    "data.images=400", "data.validation=0.05", "train.epochs=1", "prune.epochs=1",
    "prune.rounds=1", "prune.fraction=0.3", "scan.images=100", "scan.fractions=[0.3]",
    "scan.layer_fractions=[0.3]", "quantize.images=50", "quantize.scan_images=100",
    "bench.repeats=10", "bench.warmup=2",
]  # fmt: skip
"""What makes it short; without them it takes about five minutes."""


def main() -> None:
    """Run, and print what was measured of each variant."""
    with tempfile.TemporaryDirectory() as folder:
        result = secateur.run("quickstart", out=Path(folder), sets=CHANGES)
        sizes = {}
        for record in result.records:
            if record.metric in ("top1_percent", "size_bytes") and not record.at:
                bounds = "" if record.low is None else f" [{record.low:.1f}, {record.high:.1f}]"
                print(f"{record.variant:<10} {record.metric:<13} {record.value:,.1f}{bounds}")
            if record.metric == "size_bytes":
                sizes[record.variant] = record.value
        assert sizes["packed"] < sizes["quantized"] < sizes["reference"]
        assert result.packed is not None
        print(secateur.load(result.packed).about["accuracy"])


if __name__ == "__main__":
    main()
