"""Quantization: post-training, mixed precision and quantization-aware training."""
