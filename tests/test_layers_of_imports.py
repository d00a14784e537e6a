"""Who may import whom, as CONTRIBUTING.md says."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "glide_jax"
BASE = {"shapes", "config", "errors", "storage", "pictures", "outputs", "command_line"}
MIDDLE = {"diffusion", "models", "data"}
TOP = {"training", "evaluation", "pipeline", "stage", "clip_stage", "programs"}
COMMANDS = {"models/convert.py"}  # may import what imports them
ALLOWED = (
    {name: BASE for name in BASE}
    | {name: BASE | {name} for name in MIDDLE}
    | {name: BASE | MIDDLE | TOP for name in TOP}
)


def imported(file: Path) -> set[str]:
    tree = ast.parse(file.read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("glide_jax.")}


def test_layers_import_only_what_lies_below_them():
    for file in PACKAGE.rglob("*.py"):
        relative = file.relative_to(PACKAGE)
        part = "pipeline" if relative.as_posix() in COMMANDS else relative.parts[0]
        part = part.removesuffix(".py")
        if part != "__init__":
            assert imported(file) <= ALLOWED[part], file


def test_import_is_quick():
    """Beside jax and flax, which it needs and which the same process, as busy, imports first."""
    command = (
        "from time import process_time as now; before = now();"
        "import jax, flax.nnx; between = now(); import glide_jax;"
        "print(between - before, now() - between)"
    )

    def import_s() -> list[float]:
        done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
        return [float(seconds) for seconds in done.stdout.split()]

    theirs, ours = (min(of_one) for of_one in zip(*(import_s() for _ in range(3)), strict=True))
    assert ours < theirs / 2

    command = "import glide_jax, sys; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True).stdout
    slow = {"tensorflow_datasets", "transformers", "torch", "tyro", "grain", "orbax"}
    assert not slow & set(modules.split())
