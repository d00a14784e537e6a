"""Time of a GPU program's instructions: a roofline, because its compiler estimates none.

An instruction takes the longer of two times: its matmuls and convolutions at MATMUL_EFFICIENCY of
the peak rate, and its reads and writes at MEMORY_EFFICIENCY of the peak bandwidth ("How to Scale
Your Model", jax-ml.github.io/scaling-book, sec. 1). Launches, caches and occupancy are left out.
"""

import math
import re
from collections.abc import Callable

from glide_jax.parallel.chips import Chip
from glide_jax.plan.hlo import Computations, Instruction, bytes_of, called

MATMUL_EFFICIENCY = 0.5
"""Fraction of the peak rate of matmuls and convolutions: an assumption."""

MEMORY_EFFICIENCY = 0.8
"""Fraction of the peak bandwidth: an assumption."""

SOURCE = (
    f"a roofline at {MATMUL_EFFICIENCY:.0%} of the peak FLOP/s and {MEMORY_EFFICIENCY:.0%} of the "
    "bandwidth"
)

FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")
"""Operations that compute nothing."""


def timer(name: str, computations: Computations, chip: Chip) -> Callable[[Instruction], float]:
    """`instruction -> seconds`, for the instructions of a computation.

    Args:
        name: of the computation.
        computations: of the program.
        chip: the GPU.
    """
    sources = {instruction.name: instruction for instruction in computations[name]}

    def compute_s(instruction: Instruction) -> float:
        if instruction.operation in FREE:
            return 0.0
        parts = called(instruction, computations)
        fused = {part.name: part for part in parts[1:]}
        matmuls = sum(
            _flops(part, fused if part.name in fused else sources) / _rate(part, fused or sources)
            for part in parts
        )
        moved = _moved_bytes(parts, sources) / MEMORY_EFFICIENCY / chip.hbm_bytes_per_s
        return max(matmuls / MATMUL_EFFICIENCY / chip.flops, moved)

    return compute_s


def _rate(part: Instruction, sources: dict[str, Instruction]) -> float:
    """Rate relative to bfloat16's: float32 matmuls are in TensorFloat-32, at half of it."""
    kinds = {kind for x in part.operands if x in sources for kind, _ in sources[x].arrays}
    return 0.5 if "f32" in kinds and "bf16" not in kinds else 1.0


def _flops(part: Instruction, sources: dict[str, Instruction]) -> float:
    """FLOPs of a matmul, convolution or attention kernel; 0 of anything else."""
    out = part.arrays[0][1] if part.arrays else ()
    shapes = [sources[x].arrays[0][1] for x in part.operands if x in sources and sources[x].arrays]
    if part.operation == "dot":
        lhs, rhs = shapes[:2]
        contracted = math.prod(lhs[axis] for axis in part.axes("lhs_contracting_dims"))
        return 2.0 * math.prod(out) * contracted
    target = re.search(r'custom_call_target="([^"]*)"', part.line)
    if target is None:
        return 0.0
    if "gemm" in target[1] or "matmul" in target[1]:
        lhs, rhs = shapes[:2]
        batch = re.search(r'"lhs_batch_dimensions":\[([^\]]*)\]', part.line)
        axes = re.findall(r"\d+", batch[1]) if batch else []
        # (b m k) (b k n) (b m n) is b (b m n k)^2.
        b = math.prod(lhs[int(axis)] for axis in axes)
        return 2.0 * math.sqrt(math.prod(lhs) * math.prod(rhs) * math.prod(out) / b)
    if target[1].startswith("__cudnn$conv"):
        return _convolution_flops(part, shapes, out, backward_filter="Filter" in target[1])
    if target[1].startswith("__cudnn$fmha"):
        (b, q, heads, width), (_, l, *_) = shapes[:2]
        return (10.0 if "Backward" in target[1] else 4.0) * b * heads * q * l * width
    return 0.0


def _convolution_flops(
    part: Instruction, shapes: list[tuple[int, ...]], out: tuple[int, ...], backward_filter: bool
) -> float:
    """FLOPs of a convolution or its gradient: every output pixel, tap and pair of channels.

    The text names the forward pass's axes: input_kernel->output.
    """
    labels = re.search(r"dim_labels=\w+_(\w+)->(\w+)", part.line)
    assert labels is not None
    kernel = out if backward_filter else shapes[1]
    # The gradient of the input reads that of the output.
    output = shapes[1] if backward_filter else shapes[0] if "BackwardInput" in part.line else out
    channels = output[labels[2].index("f")]
    return 2.0 * math.prod(output) / channels * math.prod(kernel)


def _moved_bytes(parts: list[Instruction], sources: dict[str, Instruction]) -> float:
    """Bytes that an instruction reads and writes; of a sliced or updated array, the slice."""
    instruction, *fused = parts
    if not fused:
        read = sum(bytes_of(sources[x]) for x in instruction.operands if x in sources)
        return read + bytes_of(instruction)
    users: dict[str, list[Instruction]] = {}
    for part in fused:
        for operand in part.operands:
            users.setdefault(operand, []).append(part)
    moved = 0.0
    by_name = {part.name: part for part in fused}
    for part in fused:
        if part.operation != "parameter":
            continue
        for user in users.get(part.name, []):
            of_part = user.operands[0] == part.name
            if of_part and user.operation == "dynamic-slice":
                moved += bytes_of(user)
            elif not (of_part and user.operation == "dynamic-update-slice"):
                moved += bytes_of(part)
                break
    root = next(part for part in fused if part.line.lstrip().startswith("ROOT"))
    if root.operation == "dynamic-update-slice":
        root = by_name[root.operands[1]]
    return moved + bytes_of(root)
