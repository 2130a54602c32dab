"""From a module to int8 ONNX, a packed file and predictions.

The network is untrained and the images are noise: only the steps matter here.
Run: python examples/quantize_and_pack.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from torchvision.models import resnet18

import secateur

CLASSES = [f"class {number}" for number in range(10)]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    """Quantize, save, pack, compare and classify."""
    torch.manual_seed(0)
    network = resnet18(num_classes=10).eval()
    images = np.random.default_rng(0).integers(0, 256, (64, 64, 64, 3), np.uint8)

    quantized = secateur.quantize(network, images, classes=CLASSES, mean=MEAN, std=STD)
    print(quantized.parity)
    with tempfile.TemporaryDirectory() as folder:
        onnx = quantized.save(Path(folder) / "net.onnx")
        packed = secateur.pack(onnx, Path(folder) / "net.sec")
        float_bytes = 4 * sum(parameter.numel() for parameter in network.parameters())
        print(f"float {float_bytes:,} bytes, ONNX {onnx.stat().st_size:,}, "
              f"packed {packed.stat().st_size:,}")  # fmt: skip

        result = secateur.benchmark([onnx, network], batches=(1,), repeats=10, warmup=2)
        for row in result.rows:
            print(f"{row.title}: {np.median(row.samples[1]):.2f} ms")

        classifier = secateur.load(packed)
        for name, probability in classifier.predict(images[:1], top=3)[0]:
            print(f"{name}: {probability:.3f}")
        assert packed.stat().st_size < onnx.stat().st_size < float_bytes
        assert np.allclose(classifier(images[:2]).sum(1), 1, atol=1e-5)


if __name__ == "__main__":
    main()
