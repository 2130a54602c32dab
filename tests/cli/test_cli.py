"""The command as a user meets it: one process, its exit code and its two streams."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

import secateur.cli.app as cli
from helpers import socket_guard
from secateur.records import Record

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def _secateur(*arguments: object, offline: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the command in its own process; ``offline``, a socket of the internet kills it."""
    how = [socket_guard.__file__] if offline else ["-m", "secateur"]
    command = [sys.executable, *how, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)


def _fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str]:
    """Run the command in this process; return exit code and the one line on stderr."""
    monkeypatch.setattr(sys, "argv", ["secateur", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("secateur: ")]
    assert len(lines) == 1, err
    assert err.splitlines()[-1] == lines[0]
    assert isinstance(caught.value.code, int)
    return caught.value.code, lines[0]


def _here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[object, str, str]:
    """Run the command in this process, which has torch already; exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["secateur", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code, *capsys.readouterr()


def _ships(
    run: Path,
    images: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Pack, verify, ask, show and unpack what a run made, in this process."""
    sec, onnx = folder / "net.sec", folder / "net.onnx"
    (shipped,) = (run.parent / "stages").glob("quantize-*/quantized.onnx")
    image = next((images / "test" / "left").iterdir())
    for command, said in (
        (("pack", run, "-o", sec), "times smaller than its ONNX"),
        (("verify", sec), "not measured here"),
        (("verify", sec, "--data", images), "measured here: the same"),
        (("predict", sec, image, "--top", 1), f"{image}: "),
        (("show", sec), "recipe_id"),
        (("unpack", sec, "-o", onnx), "SHA-256"),
    ):
        code, out, _ = _here(monkeypatch, capsys, *command)
        assert code == 0
        assert said in out
    assert onnx.read_bytes() == shipped.read_bytes()


@pytest.mark.slow
def test_the_whole_chain_twice(
    recipe_file: Path,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """End to end on tiny data, with no way to the network; the second time nothing is to do."""
    arguments = ("run", recipe_file, "--data", image_folder, "--out", tmp_path / "out", "--json")
    first = _secateur(*arguments, offline=socket_guard.AVAILABLE)
    assert first.returncode == 0, first.stderr
    records = [Record.model_validate_json(line) for line in first.stdout.splitlines()]
    for variant in ("reference", "pruned", "quantized", "packed"):
        for metric in ("top1_percent", "parameters", "macs", "size_bytes", "latency_ms"):
            (found,) = [r for r in records if (r.variant, r.metric) == (variant, metric)]
            assert found.value >= 0
    sizes = {r.variant: r.value for r in records if r.metric == "size_bytes"}
    assert sizes["packed"] < sizes["quantized"] < sizes["pruned"] <= sizes["reference"]
    (accuracy,) = [r for r in records if (r.variant, r.metric) == ("reference", "top1_percent")]
    assert accuracy.n == 12
    (folder,) = (tmp_path / "out").glob("tiny-*")
    assert {file.name for file in folder.iterdir()} >= {
        "recipe.toml",
        "records.jsonl",
        "report.html",
        "report.md",
        "net.sec",
    }
    _ships(folder, image_folder, tmp_path, monkeypatch, capsys)
    # Images that are missing are noticed, though every stage is stored.
    (image_folder / "test").rename(tmp_path / "gone")
    code, out, err = _here(monkeypatch, capsys, *arguments)
    assert code != 0
    assert "no test images" in err
    (tmp_path / "gone").rename(image_folder / "test")
    code, out, err = _here(monkeypatch, capsys, *arguments)
    assert code == 0, err
    assert "nothing to do" in err
    assert out == first.stdout
    # One changed field redoes what depends on it alone.
    changed = ("scan", *arguments[1:-1], "--set", "scan.fractions=[0.4]", "--set", "bench.warmup=2")
    code, _, err = _here(monkeypatch, capsys, *changed)
    assert code == 0, err
    lines = err.splitlines()
    assert any(line.startswith("train: in place") for line in lines)
    assert any(line.startswith("scan: done") for line in lines)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_leaves_nothing_to_trust(
    sent: signal.Signals, recipe_file: Path, image_folder: Path, tmp_path: Path
) -> None:
    """In the middle of training: one line, the shell's code, a checkpoint, no finished stage."""
    command = [sys.executable, "-m", "secateur", "train", str(recipe_file)]
    command += ["--data", str(image_folder), "--out", str(tmp_path / "out")]
    command += ["--set", "train.epochs=500"]
    process = subprocess.Popen(
        command,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        # A suite run in the background of a shell ignores Ctrl-C, and its children would too.
        preexec_fn=lambda: signal.signal(sent, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob("stages/*.partial/checkpoint.safetensors")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + sent
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("secateur: interrupted")
    assert not list((tmp_path / "out").glob("stages/train-*[0-9a-f]/stage.json"))


def test_help_has_examples_for_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    names = set(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]
    assert {
        "run",
        "train",
        "scan",
        "prune",
        "quantize",
        "export",
        "bench",
        "pack",
        "verify",
    } <= names
    for name in sorted(names):
        with pytest.raises(SystemExit) as caught:
            cli.app([name, "--help"])
        assert caught.value.code == 0
        out = capsys.readouterr().out
        assert "Examples" in out
        assert "Cost: " in out
        assert f"secateur {name}" in out


@pytest.mark.skipif(not socket_guard.AVAILABLE, reason="seccomp filters are Linux's")
def test_the_guard_lets_nothing_through() -> None:
    assert _secateur("--connect", offline=True).returncode == socket_guard.KILLED
    assert _secateur("recipes", offline=True).returncode == 0


def test_help_is_quick() -> None:
    """The help of a command must not wait for torch."""
    code = "import sys, secateur.cli.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["run", "quickstrat"], 2, ["unknown recipe", "did you mean 'quickstart'"]),
        (["run", "none.toml"], 2, ["cannot read recipe (none.toml)"]),
        (["run", "--set", "train.epoch=3"], 2, ["unknown recipe key", "did you mean 'epochs'"]),
        (["run", "--set", "train.epochs=many"], 2, ["train.epochs", "found 'many'"]),
        (["run", "--set", "network.name=vgg"], 2, ["network.name", "'mobilenet_v2'"]),
        (["train", "--device", "gpu"], 2, ["no such device (--device)", "found gpu"]),
        (["train", "--out", "/dev/null/runs"], 1, ["cannot write to output folder"]),
        (
            ["train", "alexnet-fashionmnist-quick", "--data", "/nowhere"],
            2,
            ["no such data folder (/nowhere)", "--data"],
        ),
        (
            ["train", "--set", "network.name=alexnet"],
            2,
            ["resolution too small", "at least 63, found 28"],
        ),
        (["show", "nothing.here"], 2, ["nothing to show (nothing.here)"]),
        (["report", "nothing.here"], 1, ["records.jsonl"]),
        (["pack", "nothing.here", "-o", "x.sec"], 2, ["nothing to pack (nothing.here)"]),
        (["verify", "nothing.sec"], 2, ["No such file", "nothing.sec"]),
        (["run", "--set", "quantize.price=-1"], 2, ["quantize.price"]),
        (["run", "--set", "train.learning_rate=inf"], 2, ["train.learning_rate", "finite"]),
        (["run", "--set", f"train.epochs={'9' * 5000}"], 2, ["cannot read --set (train.epochs)"]),
        (["run", "--set", f"name={'n' * 300}"], 2, ["recipe key name", "at most 100"]),
        (["pack", "net.onnx", "-o", "/dev/null"], 2, ["cannot write (/dev/null)", "a device"]),
        (["unpack", "net.sec", "-o", "none/net.onnx"], 2, ["no such folder"]),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: list[str],
    code: int,
    parts: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    found, line = _fails(capsys, monkeypatch, *arguments)
    assert found == code
    for part in parts:
        assert part in line


def test_a_class_folder_with_one_image(
    recipe_file: Path,
    image_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for image in list((image_folder / "train" / "left").iterdir())[1:]:
        image.unlink()
    code, line = _fails(
        capsys, monkeypatch, "train", recipe_file, "--data", image_folder, "--out", tmp_path / "out"
    )
    assert code == 2
    assert "too few images" in line


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (OSError(28, "No space left on device", "weights"), 1, "No space left on device (weights)"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("oops"), 70, "internal error: ZeroDivisionError: oops; --debug"),
    ],
)
def test_failures_inside_are_one_line_too(
    error: BaseException,
    code: int,
    part: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("secateur.pipeline.run.run", fail)
    found, line = _fails(capsys, monkeypatch, "run")
    assert found == code
    assert part in line


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    done = _secateur("run", "none.toml", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_json_alone_is_on_stdout(recipe_file: Path, image_folder: Path, tmp_path: Path) -> None:
    done = _secateur(
        "train", recipe_file, "--data", image_folder, "--out", tmp_path / "out", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert all(json.loads(line)["recipe_id"] for line in done.stdout.splitlines())
    assert "train: done" in done.stderr
