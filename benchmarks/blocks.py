"""What a block of a U-Net takes on a TPU, there and back, by the compiler's own estimates.

    pip install -e ".[tpu]"
    python benchmarks/blocks.py v6e:2x2 --config configs/base64_3b5.py --level 0

A whole step takes the compiler half an hour and more, a block minutes: try here first what should
make steps quicker. It is of the middle of a level, as many channels in as out.
"""

import argparse
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from glide_jax.cli import load_config
from glide_jax.config import ModelConfig, Remat
from glide_jax.models.network import Network
from glide_jax.models.placement import batch_over
from glide_jax.models.remat import block_input, recomputed
from glide_jax.models.unet import AttentionBlock, Block, ResBlock, TextKV
from glide_jax.parallel import sharding
from glide_jax.plan.compiled import usage
from glide_jax.plan.slices import EFFORTS, compile_for, known_chip, shares, topology_devices
from glide_jax.shapes import Params
from glide_jax.training.flops import product_flops


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("topology", help="as v5p:2x2x1, v5e:2x2, v6e:2x2; one chip is taken")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--level", type=int, default=0, help="from the largest images on")
    parser.add_argument("--remat", choices=get_args(Remat), default="blocks")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--effort", choices=EFFORTS, default="full")
    parser.add_argument("--text", type=Path, help="where to write the compiled program")
    given = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    device = topology_devices(given.topology)[0]
    chip = known_chip(device)
    model = load_config(given.config).denoiser
    px = model.unet.resolution_px >> given.level
    c = model.unet.channels * model.unet.channel_mult[given.level]
    attends = px in model.unet.attention_px
    network = Network(lambda rngs: make_block(model, c, attends, given.remat, rngs))

    mesh = sharding.local_mesh(given=[device])
    examples, everywhere = sharding.batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())

    def loss(params: Params, x: Any, emb: Any, text: TextKV | None, key: Any) -> jax.Array:
        with batch_over(examples):
            call = recomputed(network.bind(params).__call__, given.remat)
            out = call(block_input(x), None, emb, text, key if model.unet.dropout else None)
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
        given.text.write_text(program)
    used = usage(program, chip)
    step_s = used.step_s
    flops = 3 * product_flops(loss, *arguments)
    print(
        f"{px} px, {c} channels, {'with' if attends else 'without'} attention, remat "
        f"{given.remat}, {given.images} images on {chip.name}: {1e3 * step_s:.2f} ms, "
        f"MFU {flops / step_s / chip.flops:.1%} (compiled in {compile_s:.0f} s)",
        *shares(used.operation_s),
        sep="\n",
    )


def make_block(model: ModelConfig, c: int, attends: bool, remat: Remat, rngs: Any) -> Block:
    """A block in the middle of a level of `c` channels."""
    dtype, unet = jnp.dtype(model.dtype), model.unet
    res = ResBlock(c, c, 4 * unet.channels, unet.dropout, dtype, rngs)
    if not attends:
        return Block(remat, res)
    return Block(remat, res, AttentionBlock(c, unet.head_width, model.text.width, dtype, rngs))


if __name__ == "__main__":
    main()
