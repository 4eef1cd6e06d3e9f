"""Systems whose teacher is a trained diffusion model: students that sample in a few steps."""
