"""Transformers of patches: one published architecture a file."""
