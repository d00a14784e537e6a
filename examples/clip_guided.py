"""CLIP leads the way, instead of classifier-free guidance or together with it, and picks the best.

python examples/clip_guided.py runs/released
"""

# %% Models: a base model and a noised CLIP
import sys
from pathlib import Path

import numpy as np

from glide_jax import Glide
from glide_jax.images import save_grid

glide = Glide.load(sys.argv[1])
out = Path("out")
prompt = "an oil painting of a corgi"

# %% By CLIP alone
images = glide.generate(
    [prompt], n=4, guidance_scale=1.0, clip_guidance_scale=3.0, sampler="ddpm", steps=20
)
save_grid(out / "clip_guided.png", images, [prompt] * 4, columns=4)

# %% The best two of four, ranked while they are small
best = glide.generate([prompt], n=4, keep=2, steps=20)
save_grid(out / "best.png", best, [prompt] * 2, columns=2)

# %% How well images fit captions
captions = [prompt, "a photograph of a street"]
scores = np.stack([glide.rank(images, [caption]) for caption in captions])
for caption, row in zip(captions, scores, strict=True):
    print(caption, np.round(row, 3))
