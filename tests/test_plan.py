import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import tiny
from helpers.cuda import with_cuda
from helpers.model_set import upsampler_config

from glide_jax.config import UNetConfig
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.errors import UserError
from glide_jax.parallel import sharding
from glide_jax.parallel.chips import GIB, chip_of
from glide_jax.plan import roofline
from glide_jax.plan.__main__ import main
from glide_jax.plan.compiled import usage
from glide_jax.plan.forecast import compile_for
from glide_jax.plan.sampling import SamplingForecast, abstract_inputs, require_even
from glide_jax.plan.topologies import GPUS, topology_devices
from glide_jax.plan.training import TrainForecast, saved_activations, table
from glide_jax.sampling.conditions import Conditions, Known
from glide_jax.sampling.programs import Inputs
from glide_jax.sampling.stage import Stage

ROOT = Path(__file__).parent.parent

with_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: make test-tpu"
)

FORECAST = TrainForecast(
    config="base64_3b5",
    topology="v5p:4x4x4",
    mesh=(16, 4),
    remat="blocks",
    micro_batches=1,
    batch_examples=2048,
    steps=3_600_000,
    chips=64,
    hbm_bytes=95 * GIB,
    parameter_bytes=4 * GIB,
    ema_bytes=4 * GIB,
    optimizer_bytes=8 * GIB,
    activation_bytes=6 * GIB,
    temporary_bytes=20 * GIB,
    batch_bytes=GIB,
    code_bytes=GIB,
    model_flops=64 * 459e12 / 2,
    compiled_flops=1e14,
    accessed_bytes=1e12,
    operation_s={"dot_general": 0.6, "copy": 0.29, "add_any": 0.01},
    exposed_s=0.1,
    collective_s={"all-gather": 0.2},
    collective_bytes={"all-gather": 5e9},
    peak_flops=459e12,
    timing="the TPU compiler's cycles",
    compile_s=60.0,
    effort="full",
)


def plan(*arguments, flags=""):
    """Runs the command in a process of its own, which reads the compiler's flags at its start."""
    command = [sys.executable, "-m", "glide_jax.plan", "--config", tiny.__file__]
    environment = os.environ | {"LIBTPU_INIT_ARGS": flags}
    return subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=500
    )


def test_a_training_forecast_adds_up():
    assert FORECAST.used_bytes == 38 * GIB
    assert FORECAST.fits and not dataclasses.replace(FORECAST, temporary_bytes=90 * GIB).fits
    assert FORECAST.mfu == pytest.approx(0.5)
    report = FORECAST.report()
    for text in (
        "fits, 57.0 GiB free",
        "MFU",
        "50.0%",
        "2048 /s",
        "1,000 h, 64,000 chip-hours",
        "dot_general               600.00 ms   66.7%\n  copy ",
    ):
        assert text in report
    assert "add_any" not in report  # 1.1%
    assert "13.0 GiB too much" in dataclasses.replace(FORECAST, temporary_bytes=90 * GIB).report()


def test_plans_that_fit_are_ranked_by_speed():
    slower = dataclasses.replace(FORECAST, operation_s={"copy": 1.9}, remat="everything")
    quicker = dataclasses.replace(FORECAST, operation_s={"copy": 0.1}, remat="none")
    too_large = dataclasses.replace(quicker, temporary_bytes=90 * GIB)
    rows = table([too_large, slower, FORECAST]).splitlines()[2:]
    assert [row.split(" | ")[2] for row in rows] == ["blocks", "everything", "none"]


def test_rematerialization_saves_fewer_activations():
    config = tiny.get_config()
    unet = UNetConfig(16, 32, channel_mult=(1,), res_blocks=1, attention_px=(16,), head_width=32)
    saved = {
        remat: saved_activations(
            dataclasses.replace(
                config, model=dataclasses.replace(config.model, unet=unet, remat=remat)
            ),
            jax.devices()[:1],
        )
        for remat in ("none", "matmuls", "blocks")
    }
    assert saved["none"] > 2 * saved["matmuls"] > 2 * saved["blocks"] > 0


@pytest.mark.parametrize(
    ("package", "topology", "compiler"),
    [("libtpu", "v5e:2x2", "TPU"), ("jax_cuda13_plugin", "h100:8", "CUDA")],
)
def test_a_missing_compiler_is_named(package, topology, compiler):
    if importlib.util.find_spec(package) is not None:
        pytest.skip("it is installed")
    with pytest.raises(UserError, match=f"^plans need the {compiler} compiler: pip"):
        main(["--config", tiny.__file__, "--topology", topology])


@pytest.mark.parametrize(
    ("topology", "line"),
    [
        ("h100:9", "--topology h100:9: give 1 to 8 GPUs, such as h100:8"),
        ("h100:many", "--topology h100:many: give 1 to 8 GPUs, such as h100:8"),
        ("rtx5090", "give a TPU slice, such as v5e:4x4 or v5p:4x4x4, or GPUs: rtx3090, rtx4090,"),
    ],
)
def test_unknown_gpus_are_named(topology, line):
    with pytest.raises(UserError, match=line):
        topology_devices(topology)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_a_gpu_has_peak_rates_and_its_tensor_cores_give_them(gpu):
    chip = chip_of(gpu.kind)
    # FLOPs of a multiprocessor and cycle, in bfloat16: whole powers of two.
    assert chip is not None and chip.usable_bytes < chip.hbm_bytes
    per_cycle = chip.flops / gpu.cores / (gpu.clock_ghz * 1e9)
    assert min(abs(per_cycle / peak - 1) for peak in (512, 1024, 2048, 4096)) < 0.1


@with_compiler
@pytest.mark.slow
def test_the_train_step_compiles_for_tpus(tmp_path):
    out = tmp_path / "plans.jsonl"
    found = plan("--topology", "v5e:2x2", "--mesh", "2x2", "--effort", "quick", "--json", str(out))
    assert found.returncode == 0, found.stderr
    made = json.loads(out.read_text())
    assert (made["chips"], made["mesh"]) == (4, [2, 2])
    assert made["collective_bytes"]["all-reduce"] > 0
    assert made["operation_s"]["dot_general"] > 0 and made["hbm_bytes"] == 16 * GIB
    assert "fits" in found.stdout


@with_cuda
@pytest.mark.slow
def test_the_train_step_compiles_for_gpus(tmp_path):
    out = tmp_path / "plans.jsonl"
    found = plan("--topology", "a100-40:4", "--mesh", "2x2", "--json", str(out))
    assert found.returncode == 0, found.stderr
    made = json.loads(out.read_text())
    assert (made["chips"], made["mesh"], made["hbm_bytes"]) == (4, [2, 2], 38 * GIB)
    assert made["temporary_bytes"] > 0 and sum(made["collective_bytes"].values()) > 0
    assert made["operation_s"]["conv_general_dilated"] > 0 and made["timing"] == roofline.SOURCE
    assert "of 38 GiB: fits" in found.stdout and "not measured" in found.stdout


@with_cuda
def test_matmuls_whose_tiles_a_gpu_would_measure_are_planned():
    chip = jax.sharding.SingleDeviceSharding(topology_devices("h100")[0])
    x = jax.ShapeDtypeStruct((32, 64, 64, 3), "float32", sharding=chip)
    resize = jax.jit(lambda x: jax.image.resize(x, (32, 256, 256, 3), "linear"))
    text = compile_for("h100", resize.lower(x), "full")[0].as_text()
    matmuls = 2 * 32 * 3 * 64 * 256 * (64 + 256)
    least_s = matmuls / (chip_of("NVIDIA H100 80GB HBM3").flops / 2)
    assert usage(text, chip_of("NVIDIA H100 80GB HBM3")).operation_s["dot_general"] > least_s


@with_compiler
@pytest.mark.slow
def test_parameters_sharded_over_all_chips_are_gathered():
    slice = "v5e:2x2"
    mesh = sharding.local_mesh(4, topology_devices(slice))
    x = jax.ShapeDtypeStruct((256, 256, 2048), "bfloat16", sharding=sharding.batch_sharding(mesh))
    by_rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    w = jax.ShapeDtypeStruct((2048, 8192), "bfloat16", sharding=by_rows)

    def program(options):
        lowered = jax.jit(lambda x, w: x @ w, compiler_options=options).lower(x, w)
        return compile_for(slice, lowered, "quick")[0].as_text()

    assert "collective-permute" in program(None)
    assert "collective-permute" not in program(sharding.compiler_options(mesh))
    assert sharding.compiler_options(sharding.local_mesh(2, topology_devices(slice))) is None


@with_compiler
def test_only_a_shard_of_the_gradient_crosses_slices():
    devices = topology_devices("v5e:2x2", slices=2)
    mesh = sharding.local_mesh(4, devices)
    by_rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    x = jax.ShapeDtypeStruct((64, 512), "float32", sharding=sharding.batch_sharding(mesh))
    w = jax.ShapeDtypeStruct((512, 512), "float32", sharding=by_rows)
    gradient = jax.jit(jax.grad(lambda w, x: ((x @ w) ** 2).sum()), out_shardings=by_rows)
    text = gradient.lower(w, x).compile().as_text()
    assert " all-gather(" in text
    assert set(re.findall(r"replica_groups=(\S+),", text)) == {"{{0,1,2,3}}"}  # of one slice
    (sent,) = re.findall(r" = \(f32\[([\d,]+)\]\S* u32\[\], token\[\]\) send\(", text)
    assert np.prod([int(n) for n in sent.split(",")]) == 512 * 512 / 4


@with_compiler
@pytest.mark.slow
def test_collectives_on_sparse_cores_are_counted(tmp_path):
    out = tmp_path / "plan.json"
    flags = " ".join((ROOT / "configs" / "sparse_core_flags.txt").read_text().split())
    slice = ("--topology", "v6e:2x2", "--mesh", "4x1", "--effort", "quick", "--json", str(out))
    found = plan(*slice, flags=flags)
    assert found.returncode == 0, found.stderr
    made = json.loads(out.read_text())
    # Gradients, of two or four bytes per parameter, are summed over the chips.
    parameters = made["parameter_bytes"] / 4
    assert sum(made["collective_bytes"].values()) > 1.8 * parameters


@with_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--mesh", "3x2"), "--mesh 3x2: 3 x 2 is not the topology's 4 chips"),
        (("--mesh", "many"), "--mesh many: give DATAxFSDP, such as 16x4"),
        (("--topology", "v5e:9"), "--topology v5e:9: no such slice"),
        (("--train.batch-examples", "6"), "(6) must be divisible by the number of devices (4)"),
    ],
)
def test_an_impossible_plan_is_named(flags, line):
    with pytest.raises(UserError, match=re.escape(line)):
        main(["--config", tiny.__file__, "--topology", "v5e:2x2", *flags])


SAMPLING = SamplingForecast(
    config="base64_3b5",
    topology="v5e:2x4",
    mesh=(1, 8),
    images=16,
    sampler="ddpm",
    calls=150,
    guided=True,
    chips=8,
    hbm_bytes=16 * GIB,
    parameter_bytes=2 * GIB,
    temporary_bytes=4 * GIB,
    batch_bytes=GIB,
    code_bytes=GIB,
    begin_s=1.0,
    operation_s={"dot_general": 0.15},
    exposed_s=0.05,
    collective_s={"all-gather": 0.1},
    collective_bytes={"all-gather": 14e9},
    timing="the TPU compiler's cycles",
    compile_s=60.0,
    effort="full",
)


def test_a_sampling_forecast_adds_up():
    assert SAMPLING.used_bytes == 8 * GIB
    assert SAMPLING.sampling_s == pytest.approx(31)
    report = SAMPLING.report()
    for text in (
        "16 images, 150 guided calls of ddpm",
        "fits, 8.0 GiB free",
        "14.00 GB     100.0 ms",
        "(25.0%)",
        "0.52 /s",
    ):
        assert text in report
    assert "4.0 GiB too much" in dataclasses.replace(SAMPLING, temporary_bytes=16 * GIB).report()


@pytest.mark.parametrize("inpaint", [False, True])
def test_a_planned_batch_has_the_inputs_of_a_stage(inpaint):
    config = upsampler_config(inpaint)
    stage = Stage(config, {}, Tokenizer.train(["a star"], 300))
    low_res, large = np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 16, 16, 3), np.uint8)
    known = Known(large, np.zeros((2, 16, 16, 1), bool)) if inpaint else None
    real = stage._inputs(["a star", "x"], [0, 1], Conditions(low_res, known), None)
    assert jax.eval_shape(lambda: Inputs(**real)) == abstract_inputs(config.denoiser, 2)


def test_a_sampling_plan_of_no_images_is_refused(monkeypatch):
    command = "glide_jax.plan.__main__"
    monkeypatch.setattr(f"{command}.topology_devices", lambda topology: [None] * 4)
    monkeypatch.setattr(f"{command}.forecast_sampling", lambda *given: require_even(given[-1], 4))
    with pytest.raises(UserError, match="--images 0: must be at least 1"):
        main(["--config", "scenes_tiny", "--sampler", "--images", "0"])


def test_a_batch_that_does_not_divide_is_named():
    assert [require_even(images, 4) for images in (None, 1, 8)] == [4, 1, 8]
    for images in (0, 6):
        with pytest.raises(UserError, match=f"--images {images}: give 1 or a multiple of the"):
            require_even(images, 4)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--search", "--sampler"), "--search is for training: give --sampler a --mesh"),
        (("--topology", "h100:8", "--effort", "quick"), "--effort quick is for TPUs"),
        (("--images", "4"), "--images is for --sampler"),
        (("--images", "0"), "--images is for --sampler"),
    ],
)
def test_contradicting_plan_flags_are_named(flags, line):
    with pytest.raises(UserError, match=line):
        main(["--config", tiny.__file__, *flags])


@with_compiler
@pytest.mark.slow
def test_the_sampling_programs_compile_for_tpus(tmp_path):
    out = tmp_path / "plans.jsonl"
    flags = ("--topology", "v5e:2x2", "--mesh", "2x2", "--sampler", "--effort", "quick")
    found = plan(*flags, "--images", "8", "--sample.steps", "20", "--json", str(out))
    assert found.returncode == 0, found.stderr
    made = json.loads(out.read_text())
    assert (made["chips"], made["mesh"], made["images"], made["calls"]) == (4, [2, 2], 8, 20)
    assert (
        made["operation_s"]["dot_general"] > 0
        and made["begin_s"] > 0
        and made["temporary_bytes"] > 0
    )
    assert "8 images, 20 guided calls of ddim" in found.stdout
    with pytest.raises(UserError, match="--images 6: give 1 or a multiple of"):
        main(["--config", tiny.__file__, *flags, "--images", "6"])
