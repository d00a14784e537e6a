"""The mathematics of diffusion. It knows no network: a `Denoiser` is all it calls."""
