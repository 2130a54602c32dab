"""Records: one measurement per JSON line, in runs, on stdout and under ``results/``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from secateur.disk import read_bytes, write_text
from secateur.errors import StoreError


class Record(BaseModel):
    """One measured number with everything needed to repeat it.

    ``low`` and ``high`` bound the value: the 95 % interval of an accuracy, the 10th and 90th
    percentile of a latency; None for exact counts. ``n`` is the number of images, timings or
    elements behind the value. ``at`` is the position of the value on a curve, for example
    ``{"fraction": 0.3, "layer": "network", "effective_sparsity": 0.29}`` in a scan or
    ``{"epoch": 4}`` in training; it is empty for a single number.

    Metrics: ``top1_percent``, ``parameters``, ``nonzero_parameters``, ``macs``, ``size_bytes``,
    ``latency_ms``, ``compression_rate``, ``top1_drop_points`` (reference minus variant, paired),
    ``scan_top1_percent``, ``scan_drop_points``, ``threshold_fraction``, ``bit_scan_top1_percent``,
    ``bit_scan_drop_points``, ``bit_scan_loss_nats``, ``parity_percent`` (agreement of top-1
    decisions between the quantized file and its simulation; its ``at`` has the largest margin in
    logits of a different decision, and the median margin of all images),
    ``validation_top1_percent``, ``train_loss``, ``epoch_seconds``, ``seconds`` (wall-clock time of
    a stage), ``unpack_seconds``. For a packed file, ``at`` names the file that it decodes to if the
    number is that file's.

    Of a network trained to overfit (variants ``overfitted``, and retrained from it
    ``overfitted-pruned``, ``overfitted-random``, ``overfitted-dense``): ``top1_percent`` and
    ``parameters`` as above, ``train_top1_percent`` (on the training images with the labels used in
    training), ``train_loss_nats``, ``test_loss_nats`` (mean cross-entropy), ``loss_gap_nats`` (test
    minus training loss), ``gain_over_dense_points``, ``gain_over_random_points``,
    ``gain_over_overfitted_points`` (variant minus the other, paired on the test images). Their
    ``at`` holds ``label_noise`` (fraction), ``training_images``, ``epochs`` (all epochs of the
    variant, including overfitting), and for gains ``mcnemar_p``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: str
    dataset: str
    variant: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int
    at: dict[str, float | str] = Field(default_factory=dict)
    seed: int
    geometry: str
    preset: str
    recipe_id: str
    runtime: str
    threads: int
    processor: str
    versions: dict[str, str]
    commit: str

    def to_json(self) -> str:
        """Return the record as one line of JSON, without the line feed."""
        return json.dumps(self.model_dump(), ensure_ascii=False, allow_nan=False)


_MOST_BYTES = 2**30


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write ``records`` to ``path`` atomically, one JSON object per line."""
    write_text(path, "".join(record.to_json() + "\n" for record in records))


def read_records(path: Path) -> list[Record]:
    """Read all records of ``path``.

    Raises:
        StoreError: The file is missing, or a line is not a record; the message names the line.
    """
    try:
        lines = read_bytes(path, _MOST_BYTES).decode().splitlines()
    except (StoreError, UnicodeDecodeError) as error:
        raise StoreError("cannot read records", where=path, found=error) from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(Record.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"])) or "line"
            raise StoreError(
                "not a record", where=f"{path}:{number}", found=f"{name}: {first['msg']}"
            ) from error
    return records
