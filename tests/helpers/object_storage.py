"""An object storage in memory that fails at random."""

from __future__ import annotations

import random
from typing import Any

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

FLAKY = "flaky"
"""Scheme of :class:`FlakyStorage`; what it holds is of this process."""


class FlakyStorage(MemoryFileSystem):
    """A storage in memory; a part of its requests fails, before or after they have an effect."""

    protocol = FLAKY
    store: dict[str, Any] = {}  # noqa: RUF012 - as its base class has it
    pseudo_dirs: list[str] = [""]  # noqa: RUF012
    share = 0.0
    draw = random.Random(0)
    failures = 0
    broken: type[Exception] | None = None

    @classmethod
    def clear(cls, share: float = 0.0, broken: type[Exception] | None = None) -> None:
        """Forget all objects; from now on ``share`` of the requests fail."""
        cls.store.clear()
        cls.pseudo_dirs[:] = [""]
        cls.share, cls.broken, cls.draw, cls.failures = share, broken, random.Random(0), 0

    def _request(self, name: str, *arguments: Any, **options: Any) -> Any:
        if self.broken is not None:
            raise self.broken("says the storage")
        early, late = (self.draw.random() < self.share / 2 for _ in range(2))
        type(self).failures += early or late
        if early:
            raise OSError("reset before the request")
        result = getattr(super(), name)(*arguments, **options)
        if late:
            raise OSError("reset after the request")
        return result

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> Any:
        return self._request("pipe_file", path, value, mode=mode)

    def cat_file(self, path: str, **_: Any) -> Any:
        return self._request("cat_file", path)

    def put_file(self, lpath: str, rpath: str, **_: Any) -> Any:
        return self._request("put_file", lpath, rpath)

    def get_file(self, rpath: str, lpath: str, **_: Any) -> Any:
        return self._request("get_file", rpath, lpath)

    def ls(self, path: str, detail: bool = True, **_: Any) -> Any:
        return self._request("ls", path, detail=detail)


fsspec.register_implementation(FLAKY, FlakyStorage, clobber=True)
