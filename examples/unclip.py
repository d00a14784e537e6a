"""unCLIP's shipped models: variations, interpolation, a text diff and principal components.

    python examples/unclip.py [folder of models]

Writes out/unclip.png.
"""

# %% Models: CLIP, prior and decoder; two scenes that none of them was trained on
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from glide_jax import UnCLIP
from glide_jax.data.scenes.workers import encoded_scene
from glide_jax.data.transforms import load_pixels
from glide_jax.images import save_grid
from glide_jax.parallel.sharding import use_all_cores

COLUMNS = 7
SETTINGS = {"sampler": "dpmpp_2m", "steps": "12", "guidance_scale": 2.0, "upsample": False}

use_all_cores(8)
unclip = UnCLIP.load(sys.argv[1] if len(sys.argv) > 1 else "demo")
px = unclip.config("decoder").denoiser.resolution_px
scenes = [encoded_scene("validation", index, closeup=False) for index in range(256)]
images = np.stack([load_pixels(scene.image, px) for scene in scenes])
a, b = images[7], images[0]

# %% Other images with a's embedding
variations = unclip.variations(a, n=COLUMNS - 1, **SETTINGS)

# %% From a to b, on the great circle between their embeddings
between = unclip.interpolate(a, b, COLUMNS, **SETTINGS)

# %% From one caption's direction to another's
thetas = np.linspace(0, 0.6, COLUMNS)
edited = unclip.text_diff(a, "a pink ring", "a blue heart", thetas, start="random", **SETTINGS)

# %% a's embedding, rebuilt from the first principal components of 256 embeddings
embeddings = unclip.embed_images(list(images))
counts = np.unique(np.geomspace(1, embeddings.shape[1] // 2, COLUMNS).round().astype(int)).tolist()
probed = unclip.probe_pca(a, counts, embeddings=embeddings, **SETTINGS)

# %% The grid
rows = [
    ["given image", *["variation"] * (COLUMNS - 1)],
    ["interpolation: a", *[""] * (COLUMNS - 2), "b"],
    ["pink ring to blue heart: 0", *(f"{theta:.1f}" for theta in thetas[1:])],
    ["1 component", *(f"{count} components" for count in counts[1:])],
]
shown = np.concatenate([a[None], variations.images, between.images, edited.images, probed.images])
upscaled = [Image.fromarray(x).resize((4 * px, 4 * px), Image.Resampling.BICUBIC) for x in shown]
out = Path("out/unclip.png")
save_grid(out, np.stack(upscaled), [label for row in rows for label in row], columns=COLUMNS)
print(f"unCLIP: {out}")
