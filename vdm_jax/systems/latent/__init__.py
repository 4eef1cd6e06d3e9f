"""Latent diffusion in two stages: an autoencoder, and a diffusion model of its latents."""
