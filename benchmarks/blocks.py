"""Time of one U-Net block on a TPU, forward and backward, by the compiler's estimates.

    pip install -e ".[tpu]"
    python benchmarks/blocks.py v6e:2x2 --config configs/base64_3b5.py --level 0

A train step takes the compiler half an hour or more, a block minutes: try optimizations here
first. The block is from the middle of a level, with as many input as output channels.
"""

import argparse
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp

from glide_jax.cli import load_config
from glide_jax.config import ModelConfig, Remat
from glide_jax.models.network import Network
from glide_jax.models.platform import Platform
from glide_jax.models.remat import block_input, recomputed
from glide_jax.models.unet_blocks import AttentionBlock, Block, ResBlock, TextKV
from glide_jax.parallel import sharding
from glide_jax.plan.compiled import usage
from glide_jax.plan.forecast import EFFORTS, compile_for, known_chip, shares
from glide_jax.plan.topologies import topology_devices
from glide_jax.shapes import Params
from glide_jax.training.flops import matmul_flops


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "topology", help="v5p:2x2x1, v5e:2x2 or v6e:2x2, for example; one chip is used"
    )
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--level", type=int, default=0, help="0 is the highest resolution")
    parser.add_argument("--remat", choices=get_args(Remat), default="blocks")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--effort", choices=EFFORTS, default="full")
    parser.add_argument("--text", type=Path, help="file to write the compiled program to")
    given = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    device = topology_devices(given.topology)[0]
    chip = known_chip(device)
    model = load_config(given.config).denoiser
    px = model.unet.resolution_px >> given.level
    c = model.unet.channels * model.unet.channel_mult[given.level]
    attends = px in model.unet.attention_px
    network = Network(
        lambda rngs, platform: make_block(model, c, attends, given.remat, platform, rngs)
    )

    mesh = sharding.local_mesh(given=[device])
    examples, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    platform = Platform.of(mesh, examples, training=True)

    def loss(params: Params, x: Any, emb: Any, text: TextKV | None, key: Any) -> jax.Array:
        call = recomputed(network.bind(params, platform).__call__, given.remat)
        x = block_input(platform.constrain_batch(x))
        out = call(x, None, emb, text, key if model.unet.dropout else None)
        return jnp.mean(out.astype(jnp.float32) ** 2)

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((given.images, *shape), model.dtype, sharding=examples)

    params = {
        name: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=everywhere)
        for name, shape in network.shapes.items()
    }
    text = TextKV(array(model.text.length, c), array(model.text.length, c)) if attends else None
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = params, array(px, px, c), array(4 * model.unet.channels), text, key
    lowered = jax.jit(jax.grad(loss, (0, 1))).lower(*arguments)
    compiled, compile_s = compile_for(given.topology, lowered, given.effort)
    program = compiled.as_text() or ""
    if given.text:
        given.text.write_text(program, encoding="utf-8")
    used = usage(program, chip)
    step_s = used.step_s
    flops = 3 * matmul_flops(loss, *arguments)
    print(
        f"{px} px, {c} channels, {'with' if attends else 'without'} attention, remat "
        f"{given.remat}, {given.images} images on {chip.name}: {1e3 * step_s:.2f} ms, "
        f"MFU {flops / step_s / chip.flops:.1%} (compiled in {compile_s:.0f} s)",
        *shares(used.operation_s),
        sep="\n",
    )


def make_block(
    model: ModelConfig, c: int, attends: bool, remat: Remat, platform: Platform, rngs: Any
) -> Block:
    """A block in the middle of a level of `c` channels."""
    dtype, unet = jnp.dtype(model.dtype), model.unet
    res = ResBlock(c, c, 4 * unet.channels, unet.dropout, dtype, platform, rngs)
    if not attends:
        return Block(remat, res)
    d_text = model.text.width
    attention = AttentionBlock(c, unet.head_width, d_text, dtype, platform, rngs)
    return Block(remat, res, attention)


if __name__ == "__main__":
    main()
