"""Sketch to image (SDEdit).

python examples/edit.py runs/released [sketch.png]
"""

# %% Models: a base model, and an upsampler if there is one
import sys
from pathlib import Path

import numpy as np

from glide_jax import Glide
from glide_jax.images import save_grid
from glide_jax.sampling.user_images import read_image

glide = Glide.load(sys.argv[1])

# %% A sketch in flat colors
if len(sys.argv) > 2:
    sketch = read_image(Path(sys.argv[2]))
else:
    sketch = np.full((64, 64, 3), (120, 170, 230), np.uint8)  # sky
    sketch[40:] = (60, 140, 60)  # grass
    sketch[20:48, 24:44] = (200, 60, 40)  # a house

# %% Higher strength keeps less of the sketch
strengths = (0.4, 0.6, 0.8)
prompt = "a red house on a meadow"
rows = [glide.edit(sketch, prompt, strength=strength, steps=20) for strength in strengths]
labels = [f"{prompt}, strength {strength}" for strength in strengths]
save_grid(Path("out") / "sdedit.png", np.concatenate(rows), labels, columns=3)
