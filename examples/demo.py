"""The shipped models: text to image, upsampling and inpainting.

    python examples/demo.py [folder of models]

Writes out/demo.png, out/demo_upsampled.png and out/demo_inpainted.png.
"""

# %% Models: a base model and an upsampler, each also in an inpainting version
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
low_res = glide.generate(PROMPTS, upsample=False, progress=True)
samples = glide.upsample(low_res, PROMPTS, batch_size=4, progress=True)
samples.save_grid(out / "demo.png")
print(f"text to image: {out / 'demo.png'}")

# %% Upsampling: low-resolution images beside the upsampled ones
side = samples.shape[1]
shown = [Image.fromarray(p).resize((side, side), Image.Resampling.NEAREST) for p in low_res[:4]]
pairs = np.stack([np.stack(shown), samples[:4]], 1).reshape(-1, side, side, 3)
labels = [label for prompt in PROMPTS[:4] for label in (prompt, "upsampled")]
save_grid(out / "demo_upsampled.png", pairs, labels, columns=4)
print(f"upsampling: {out / 'demo_upsampled.png'}")

# %% Inpainting: two versions of the lower half of the first image
image = samples[0]
known = np.ones((side, side), bool)
known[side // 2 :] = False
hidden = np.where(known[:, :, None], image, 128).astype(np.uint8)
prompts = ["a red star above a yellow heart", "a red star above a green square"]
inpainted = glide.inpaint(image, known, prompts, batch_size=2, progress=True)
save_grid(
    out / "demo_inpainted.png",
    np.stack([image, hidden, *inpainted]),
    [PROMPTS[0], "hidden", *prompts],
    columns=4,
)
print(f"inpainting: {out / 'demo_inpainted.png'}")
