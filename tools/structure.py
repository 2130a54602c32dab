"""Measure the structure of a checkout: lines of each package, and the walk of one mask.

Run: python -m tools structure [CHECKOUT ...]; by default this checkout

The walk is the way of one mask from the importance of channels to the smaller network: a small
residual network is planned (``plan_removal``), masked (``apply_masks``) and pruned (``remove``)
while the interpreter reports every call. Each function of the package counts once, at its first
call from ``channel_importance`` on. *Modules* are those that the walk enters; *returns* are its
steps back into a module that it had left. The second count takes ``pruning/tracing`` as one.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from tools import parser

ROOT = Path(__file__).parents[1]


def lines_by_package(checkout: Path) -> Counter[str]:
    """Lines of each package inside ``secateur``; modules beside the packages are ``.``."""
    package = checkout / "src" / "secateur"
    lines: Counter[str] = Counter()
    for path in package.rglob("*.py"):
        parts = path.relative_to(package).parts
        lines["." if len(parts) == 1 else parts[0]] += len(path.read_bytes().splitlines())
    return lines


def longest_function(checkout: Path) -> int:
    """Lines of the longest function, signature and docstring included."""
    return max(
        (node.end_lineno or node.lineno) - node.lineno + 1
        for path in (checkout / "src" / "secateur").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    )


def walk(checkout: Path) -> list[str]:
    """Modules of the functions that the walk calls, in order, traced in a new process."""
    paths = [str(checkout / "src"), str(ROOT)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", "from tools import structure; structure.print_trace()"]
    done = subprocess.run(  # noqa: S603 this file in a new process
        command, env=environment, capture_output=True, check=True, text=True
    )
    modules: list[str] = json.loads(done.stdout)
    return modules


def print_trace() -> None:
    """Print the walk of the package on the path as JSON."""
    import torch

    import secateur

    network, images = _network(), torch.zeros(1, 3, 16, 16)
    package, calls = str(Path(secateur.__file__).parent), dict[tuple[str, str], None]()

    def note(frame: FrameType, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(package) and frame.f_code.co_name[0] != "<":
            module = Path(file).relative_to(package).with_suffix("").as_posix()
            if module != "__init__" and (calls or frame.f_code.co_name == "channel_importance"):
                calls[module, frame.f_code.co_qualname] = None

    secateur.remove(network, secateur.plan_removal(network, images))  # imports all modules
    sys.setprofile(note)
    plan = secateur.plan_removal(network, images, fraction=0.25)  # of a half, the run is cached
    secateur.apply_masks(network, plan)
    secateur.remove(network, plan)
    sys.setprofile(None)
    print(json.dumps([module for module, _ in calls]))


def _network() -> Any:
    from torch import Tensor, nn

    class Residual(nn.Module):
        """Two convolutions around a shortcut."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 16, 1)
            self.norm, self.relu = nn.BatchNorm2d(32), nn.ReLU()

        def forward(self, images: Tensor) -> Tensor:
            return images + self.second(self.relu(self.norm(self.first(images))))

    stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    return nn.Sequential(stem, Residual(), head).eval()


def steps(modules: list[str]) -> Iterator[tuple[str, bool]]:
    """Yield each module that the walk enters, and whether it had left it before."""
    visited, current = set[str](), ""
    for module in modules:
        if module != current:
            yield module, module in visited
            visited.add(module)
            current = module


def main(arguments: list[str]) -> None:
    """Print the measurements of each checkout."""
    options = parser("structure", __doc__)
    options.add_argument("checkouts", nargs="*", type=Path, default=[ROOT], metavar="CHECKOUT")
    for checkout in options.parse_args(arguments).checkouts:
        lines, modules = lines_by_package(checkout), walk(checkout)
        outside = len(list((checkout / "src" / "secateur").glob("*.py")))
        print(f"{checkout}: {sum(lines.values()):,} lines, {outside} modules beside the packages")
        print(f"  longest function: {longest_function(checkout)} lines")
        folded = [re.sub("^pruning/tracing/.*", "pruning/tracing", module) for module in modules]
        for entered in (list(steps(modules)), list(steps(folded))):
            count = len({module for module, _ in entered})
            print(f"  walk: {count} modules, {sum(back for _, back in entered)} returns: ", end="")
            print(", ".join(f"{module}{' (return)' if back else ''}" for module, back in entered))
        print("  " + ", ".join(f"{name} {count:,}" for name, count in sorted(lines.items())))
