"""Reading images needs neither torch nor pydantic: a packed file is opened in a cold process."""

from __future__ import annotations

import subprocess
import sys


def test_importing_imaging_imports_no_torch() -> None:
    code = (
        "import sys, numpy as np; from secateur.imaging import Preparation, squares;"
        "prepare = Preparation((0.5,), (0.5,), 4);"
        "list(map(prepare.normalized, squares(np.zeros((2, 8, 8), np.uint8), prepare)));"
        "sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
