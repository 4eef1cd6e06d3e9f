"""Systems whose teacher is a trained diffusion model: students of few steps, and a slim one."""
