"""Opens the data set that a recipe names."""

from __future__ import annotations

import os
from pathlib import Path

from secateur import recipe
from secateur.data.dataset import DataSet
from secateur.data.folder import load_folder
from secateur.data.official import OfficialDataSet
from secateur.data.streamed import ShardDataSet
from secateur.datasets import FACTS
from secateur.errors import DataError, RecipeError
from secateur.imaging import PIXEL_LIMIT, Preparation


def open_data(config: recipe.Data, root: Path | None, preparation: Preparation) -> DataSet:
    """Open a data set; images are decoded on first access.

    Args:
        config: Name and split of the data set.
        root: Folder with its files; None to use ``SECATEUR_DATA``, else to download.
        preparation: Image preparation of a folder; mean and standard deviation are not used.

    Raises:
        DataError: Files are missing or invalid; the message names them.
    """
    if config.name not in ("folder", "shards"):
        return OfficialDataSet(
            config.name, root, validation=config.validation, seed=config.split_seed
        )
    root = root or Path(os.environ.get("SECATEUR_DATA", ""))
    if root == Path():
        raise DataError("no images", where=f"data.name = {config.name}", remedy="give --data DIR")
    return (load_folder if config.name == "folder" else ShardDataSet)(
        root,
        preparation,
        validation=config.validation,
        test=config.test,
        seed=config.split_seed,
        max_pixels=config.max_pixels or PIXEL_LIMIT,
    )


def geometry(config: recipe.Data, resolution: int) -> Preparation:
    """Image preparation of a recipe, before mean and standard deviation are measured.

    Args:
        config: The recipe's ``data``.
        resolution: Side in pixels of the network's input.

    Raises:
        RecipeError: ``data.resize`` is smaller than the resolution.
    """
    if 0 < config.resize < resolution:
        raise RecipeError(
            "recipe key data.resize does not fit",
            expected=f"0, or at least network.resolution = {resolution}",
            found=config.resize,
        )
    channels = FACTS[config.name].channels if config.name in FACTS else config.channels
    resize = config.resize or None
    return Preparation(
        (0.0,) * channels, (1.0,) * channels, resolution, resize, config.interpolation
    )
