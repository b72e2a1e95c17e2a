"""Masked attention and Transformer blocks, written once in PyTorch and exportable as written."""
