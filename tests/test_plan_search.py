from types import SimpleNamespace

from helpers import tiny

from glide_jax.parallel.chips import GIB, chip_of
from glide_jax.plan import training


def test_the_search_tries_what_the_compiler_may_fit(monkeypatch):
    """It keeps results of matmuls, but not all that is traced without rematerialization."""
    of_remat = {"none": 40 * GIB, "matmuls": 8 * GIB, "blocks": 4 * GIB}

    def forecast(config, *given):
        return SimpleNamespace(remat=config.model.remat, fits=True)

    for name, stub in (
        ("topology_devices", lambda topology: [None]),
        ("known_chip", lambda device: chip_of("NVIDIA GeForce RTX 4090")),
        ("saved_activations", lambda config, devices: of_remat[config.model.remat]),
        ("forecast_training", forecast),
    ):
        monkeypatch.setattr(training, name, stub)
    found = training.search(tiny.get_config(), "tiny", "rtx4090", "full", max_plans=3)
    # `everything` is not traced: there are enough plans.
    assert [plan.remat for plan in found] == ["none", "matmuls", "blocks"]
