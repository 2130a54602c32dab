"""Depth by merging: chains of convolutions without activations become one convolution."""
