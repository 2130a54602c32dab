"""Pinned npm packages: fetched once, verified by hash, and cached."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from secateur.errors import SecateurError


@dataclass(frozen=True)
class Package:
    """One version of a package, and the files used from it.

    Attributes:
        name: On npm.
        version: Exact version.
        integrity: SHA-512 of the package's archive, as npm's lock files write it.
        files: Paths inside the package.
    """

    name: str
    version: str
    integrity: str
    files: tuple[str, ...]

    def __str__(self) -> str:
        """Name and version."""
        return f"{self.name} {self.version}"


RUNTIME = Package(
    "onnxruntime-web",
    "1.30.0",
    "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
    ("dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm"),
)
"""Runs ONNX files in a page, with WebAssembly."""


def fetch_package(package: Package) -> list[Path]:
    """Return the paths of a package's files, fetched with npm if they are not cached.

    The cache is ``$XDG_CACHE_HOME/secateur/NAME-VERSION``.

    Raises:
        SecateurError: npm is missing or cannot fetch the package, or the hash differs.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "secateur" / f"{package.name}-{package.version}"
    paths = [folder / Path(name).name for name in package.files]
    if not all(path.is_file() for path in paths):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            archive = _pack(package, Path(temporary))
            _extract(package, archive, Path(temporary) / "files")
            shutil.rmtree(folder, ignore_errors=True)
            (Path(temporary) / "files").rename(folder)
    return paths


def _pack(package: Package, folder: Path) -> Path:
    """Write the package's archive into ``folder`` by npm."""
    npm = shutil.which("npm")
    if npm is None:
        raise SecateurError(
            "npm is missing",
            expected=f"npm on the PATH, to fetch {package} once",
            remedy="install Node.js (https://nodejs.org)",
        )
    source = f"{package.name}@{package.version}"
    command = [npm, "pack", source, "--pack-destination", str(folder), "--silent"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)  # noqa: S603
    archives = sorted(folder.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        reason = done.stderr.strip().splitlines()
        raise SecateurError(
            f"npm cannot fetch {package}",
            found=reason[0] if reason else f"exit code {done.returncode}",
            remedy="check the network connection and npm's configuration",
        )
    return archives[0]


def _extract(package: Package, archive: Path, folder: Path) -> None:
    """Verify the archive's hash, then extract the package's files."""
    digest = hashlib.sha512(archive.read_bytes()).digest()
    integrity = f"sha512-{base64.b64encode(digest).decode()}"
    if integrity != package.integrity:
        raise SecateurError(
            f"{package} has another hash", expected=package.integrity, found=integrity
        )
    folder.mkdir()
    with tarfile.open(archive) as files:
        for name in package.files:
            source = files.extractfile(f"package/{name}")
            assert source is not None
            (folder / Path(name).name).write_bytes(source.read())
