"""Paints a hole in an image, then another one in the result.

    python examples/inpaint.py runs/released [image.png]

The image's transparent part is painted; without an image, one is made here.
"""

# %% Models: those made for inpainting if they are there, or else the others, held to what is known
import sys
from pathlib import Path

import numpy as np

from glide_jax import Glide
from glide_jax.images import save_grid
from glide_jax.sampling.user_images import read_alpha, read_image

glide = Glide.load(sys.argv[1])
out = Path("out")

# %% An image, and what of it is known
if len(sys.argv) > 2:
    image, known = read_image(Path(sys.argv[2])), read_alpha(Path(sys.argv[2]))
else:
    y, x = np.mgrid[:96, :128]
    image = np.stack([2 * y, 255 - x, 128 + 0 * x], -1).astype(np.uint8)
    known = (x - 64) ** 2 + (y - 48) ** 2 > 30**2

# %% Three ways to fill the hole; known pixels stay exactly as they are
prompt = "a corgi in a field"
painted = glide.inpaint(image, known, [prompt], n=3, fit="crop", steps=20, progress=True)
save_grid(out / "inpainted.png", painted, [prompt] * 3, columns=3)

# %% Step by step: the result is the next image
side = painted.shape[1]
sky = np.ones((side, side), bool)
sky[: side // 3] = False
prompt = "a corgi in a field under a red sky"
again = glide.inpaint(painted[0], sky, [prompt], n=3, steps=20)
save_grid(out / "edited_again.png", again, [prompt] * 3, columns=3)
