"""``quantize``: quantizes a recipe's network, or any ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli import options
from secateur.cli.chain_commands import run_chain
from secateur.console import say
from secateur.disk import check_input
from secateur.errors import DataError, FileError, RecipeError

app = typer.Typer()

Source = Annotated[
    str, typer.Argument(metavar="[RECIPE|FILE.onnx]", help="A recipe, or a float classifier.")
]
Images = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Folder with a folder of images for each class; of a file also images.npy, "
        "prepared float32 (N, C, H, W). Default for a recipe: $SECATEUR_DATA, or a download.",
    ),
]
OutPath = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="PATH",
        help="Of a file the file to write, FILE-int8.onnx by default; of a recipe the folder.",
    ),
]
Size = Annotated[
    int | None,
    typer.Option("--size", metavar="R", help="Image side, if the file leaves it open.", min=1),
]
Classes = Annotated[
    Path | None, typer.Option("--classes", metavar="FILE", help="Class names, a line each.")
]


@app.command(rich_help_panel="The chain")
def quantize(
    source: Source = "quickstart",
    data: Images = None,
    out: OutPath = None,
    device: options.Device = "auto",
    seed: options.Seed = None,
    overrides: options.Overrides = None,
    json: options.Json = False,
    mean: options.Mean = None,
    std: options.Std = None,
    size: Size = None,
    classes: Classes = None,
) -> None:
    """Quantize any float ONNX classifier to int8 without training, or a recipe's pruned network.

    Cost: a minute for ResNet-18 and 512 images on two cores; seconds for a trained recipe.

    Examples:
        secateur quantize net.onnx --data images/ --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225

        secateur quantize net.onnx --data images.npy -o small.onnx --set bits=4

        secateur quantize my.toml --set quantize.images=1000 --set quantize.method=auto

        secateur quantize my.toml --set quantize.bits=mixed --set quantize.tolerance=0.2

        secateur quantize my.toml --set quantize.price=auto --set quantize.scan_images=0
    """
    if not source.endswith(".onnx"):
        run_chain("quantize", source, data, out or Path("runs"), device, seed, overrides, json)
        return
    known = _options(overrides or [])
    if classes is not None:
        from secateur.cli.files import class_names

        known["classes"] = class_names(classes)
    normalization = _numbers(mean, "--mean"), _numbers(std, "--std")
    network = _quantized(Path(source), data, normalization, size, known)
    path = Path(source)
    written = network.save(out or path.with_name(f"{path.stem}-int8.onnx"))
    before, after = _size(path), written.stat().st_size
    say(f"{written}: {after:,} bytes, {before / after:.2f} times smaller than {path.name}")
    if json:
        from json import dumps

        typer.echo(dumps({"parity": network.parity.to_dict(), "chosen": network.chosen}))


def _quantized(
    path: Path,
    data: Path | None,
    normalization: tuple[tuple[float, ...] | None, tuple[float, ...] | None],
    size: int | None,
    known: dict[str, Any],
) -> Any:
    """Quantize the network of a file with the images at ``data``."""
    options.wait_without_spinning()
    from secateur.quantization.quantize import quantize

    if data is None:
        raise DataError(
            "no images to quantize with", where=path, remedy="give --data DIR or --data FILE.npy"
        )
    if data.suffix == ".npy":
        return quantize(path, _array(data), **known)
    images, about = _folder(path, data, *normalization, size)
    return quantize(path, images, **(about | known))


def _options(overrides: list[str]) -> dict[str, Any]:
    """Parse options such as ``--set bits=4`` or ``--set quantize.bits=4``."""
    from secateur.recipe import parse_override

    return dict(parse_override(override.removeprefix("quantize.")) for override in overrides)


def _numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise RecipeError(
            f"cannot read {option}", expected="numbers such as 0.485,0.456,0.406", found=repr(text)
        ) from None


def _array(path: Path) -> Any:
    import numpy as np

    try:
        check_input(path)
        # Mapped, so that a header cannot promise more than the file has.
        return np.lib.format.open_memmap(path, mode="c")
    except (OSError, ValueError, FileError) as error:
        raise DataError(
            "cannot read images", where=path, expected="an array of NumPy, .npy", found=error
        ) from error


def _folder(
    path: Path,
    data: Path,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    size: int | None,
) -> tuple[Any, dict[str, Any]]:
    """Read the training images, preparation, classes and validation images of a folder."""
    from secateur.data.folder import load_folder
    from secateur.imaging import Preparation
    from secateur.onnx_ir.model import read_model
    from secateur.recipe import Quantize

    model = read_model(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    sides = [dim.dim_value for v in model.graph.input for dim in v.type.tensor_type.shape.dim]
    if mean is not None and std is not None:
        side = (sides[2] if len(sides) == 4 else 0) or size
        if not side:
            raise DataError(
                "the file leaves its input's shape open", where=path, remedy="give --size R"
            )
        preparation = Preparation(mean, std, side)
    elif "mean" in metadata:
        preparation = Preparation.from_metadata(metadata)
    else:
        raise DataError(
            "how images are prepared is not known",
            where=path,
            expected="metadata of the file, or --mean and --std",
            remedy="give both, as the network was trained",
        )
    folder = load_folder(data, preparation)
    for line in folder.report:
        say(line)
    images = folder.training.spread(Quantize().images)
    known: dict[str, Any] = {"preparation": preparation}
    outputs = [dim.dim_value for v in model.graph.output for dim in v.type.tensor_type.shape.dim]
    if outputs[-1:] == [len(folder.classes)]:
        known["validation"] = folder.validation
        return images, known
    say(
        f"quantize: {len(folder.classes)} classes in {data}, {outputs[-1:] or '?'} outputs: "
        "labels are not used"
    )
    return images.pixels[:], known


def _size(path: Path) -> int:
    """Size of a file and of its external tensors, in bytes."""
    beside = path.with_name(path.name + ".data")
    return path.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)
