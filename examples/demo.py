"""What the models that come with the package do: draw, enlarge, paint a hole anew.

    python examples/demo.py [folder of models]

Writes out/demo.png, out/demo_enlarged.png and out/demo_inpainted.png.
"""

# %% Models: a base model and an upsampler, each with one for inpainting
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from glide_jax import Glide
from glide_jax.images import save_grid
from glide_jax.parallel.sharding import use_all_cores

PROMPTS = [
    "a red star above a blue ring",
    "a large yellow heart",
    "a green triangle to the left of a purple square",
    "a small orange circle on a slate background",
    "a striped blue square below a pink star",
    "a yellow cross on a night background",
    "a cyan moon right of a red heart",
    "a dotted purple circle on a sand background",
]

use_all_cores(4)
glide = Glide.load(sys.argv[1] if len(sys.argv) > 1 else "demo")
out = Path("out")

# %% Images from captions
small = glide.generate(PROMPTS, upsample=False, progress=True)
large = glide.upsample(small, PROMPTS, batch_size=4, progress=True)
save_grid(out / "demo.png", large, PROMPTS, columns=4)

# %% What enlarging adds: each small image, and what the upsampler made of it
side = large.shape[1]
shown = [Image.fromarray(p).resize((side, side), Image.Resampling.NEAREST) for p in small[:4]]
pairs = np.stack([np.stack(shown), large[:4]], 1).reshape(-1, side, side, 3)
labels = [label for prompt in PROMPTS[:4] for label in (prompt, "enlarged")]
save_grid(out / "demo_enlarged.png", pairs, labels, columns=4)

# %% The lower half of the first image, painted anew in two ways
known = np.ones((side, side), bool)
known[side // 2 :] = False
hidden = np.where(known[:, :, None], large[0], 128).astype(np.uint8)
prompts = ["a red star above a yellow heart", "a red star above a green square"]
painted = glide.inpaint(large[0], known, prompts, batch_size=2, progress=True)
save_grid(
    out / "demo_inpainted.png",
    np.stack([large[0], hidden, *painted]),
    [PROMPTS[0], "hidden", *prompts],
    columns=4,
)
