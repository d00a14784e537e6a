"""Diffusion mathematics. Networks appear only as a `Denoiser`."""
