"""CLIP guidance, and the selection of the best images by CLIP score.

python examples/clip_guided.py runs/released
"""

# %% Models: a base model and a noised CLIP
import sys
from pathlib import Path

import numpy as np

from glide_jax import Glide

glide = Glide.load(sys.argv[1])
out = Path("out")
prompt = "an oil painting of a corgi"

# %% CLIP guidance without classifier-free guidance
samples = glide.generate(
    prompt, n=4, guidance_scale=1.0, clip_guidance_scale=3.0, sampler="ddpm", steps=20
)
samples.save_grid(out / "clip_guided.png")

# %% The best two of four, chosen before upsampling
best = glide.generate(prompt, n=4, keep=2, steps=20)
best.save_grid(out / "best.png", columns=2)

# %% CLIP scores of the images for two captions
captions = [prompt, "a photograph of a street"]
scores = np.stack([glide.rank(samples, caption) for caption in captions])
for caption, row in zip(captions, scores, strict=True):
    print(caption, np.round(row, 3))
