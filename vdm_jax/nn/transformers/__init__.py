"""Transformers of patches: each file has one published architecture."""
