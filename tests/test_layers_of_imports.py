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
    """Beside jax and flax, which it needs; the best of three each, machines being busy."""

    def import_s(modules: str) -> float:
        command = f"import {modules}, time; print(time.process_time())"
        return float(subprocess.run([sys.executable, "-c", command], capture_output=True).stdout)

    times = [(import_s("glide_jax"), import_s("jax, flax.nnx")) for _ in range(3)]
    ours, theirs = (min(of_one) for of_one in zip(*times, strict=True))
    assert ours < 1.5 * theirs

    command = "import glide_jax, sys; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True).stdout
    slow = {"tensorflow_datasets", "transformers", "torch", "tyro", "grain", "orbax"}
    assert not slow & set(modules.split())
