"""Inpainting, and step-by-step editing by inpainting the result again.

    python examples/inpaint.py runs/released [image.png]

Inpaints the transparent pixels of the image. Without an image, it makes one.
"""

# %% Models: inpainting models if there are any, else the others, reset to the known pixels
import sys
from pathlib import Path

import numpy as np

from glide_jax import Glide
from glide_jax.sampling.user_images import read_alpha, read_image

glide = Glide.load(sys.argv[1])
out = Path("out")

# %% An image and its known pixels
if len(sys.argv) > 2:
    image, known = read_image(Path(sys.argv[2])), read_alpha(Path(sys.argv[2]))
else:
    y, x = np.mgrid[:96, :128]
    image = np.stack([2 * y, 255 - x, 128 + 0 * x], -1).astype(np.uint8)
    known = (x - 64) ** 2 + (y - 48) ** 2 > 30**2

# %% Three ways to fill the hole; known pixels stay exactly as they are
prompt = "a corgi in a field"
inpainted = glide.inpaint(image, known, prompt, n=3, fit="crop", steps=20, progress=True)
inpainted.save_grid(out / "inpainted.png", columns=3)

# %% The result, inpainted again with another mask and prompt
side = inpainted.shape[1]
sky = np.ones((side, side), bool)
sky[: side // 3] = False
prompt = "a corgi in a field under a red sky"
again = glide.inpaint(inpainted[0], sky, prompt, n=3, steps=20)
again.save_grid(out / "inpainted_again.png", columns=3)
