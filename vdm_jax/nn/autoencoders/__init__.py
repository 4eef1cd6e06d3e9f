"""Autoencoders: networks between images and latents."""
