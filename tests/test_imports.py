"""Who may import whom, as docs/architecture.md says, and how long `import glide_jax` takes."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import glide_jax

PACKAGE = Path(__file__).parent.parent / "glide_jax"
FLOORS = (
    {"errors", "shapes", "storage", "hub", "fonts", "images", "config", "compilation"},
    {"cli", "flag_rules"},
    {"diffusion", "models", "data"},  # which do not know each other
    {"parallel"},
    {"pretrained"},
    {"runs"},
    {"sampling"},
    {"__init__"},
    {"training"},
    {"evaluation"},
    # Nor do these:
    {"train", "sample", "embed", "convert", "prepare", "plan", "plot", "export", "evaluate"},
)
APART = (FLOORS[2], FLOORS[-1])
FLOOR = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(file: Path) -> set[str]:
    """The modules of this package that a file imports, as a.b.c without glide_jax."""
    names = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    ours = {name.removeprefix("glide_jax.") for name in names if name.startswith("glide_jax")}
    return {_module(name) for name in ours}


def _module(name: str) -> str:
    """`a.b.name` and `a.b` both as the module a.b; a name of the package itself as __init__."""
    path = PACKAGE.joinpath(*name.split("."))
    if path.with_suffix(".py").exists():
        return name
    if (path / "__init__.py").exists():
        return f"{name}.__init__"
    parent = name.rpartition(".")[0]
    return _module(parent) if parent else "__init__"


def test_text_files_have_an_encoding():
    """Also where ruff does not know that something is a path."""
    for file in [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "benchmarks").glob("*.py")]:
        for call in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                named = any(keyword.arg == "encoding" for keyword in call.keywords)
                text = call.func.attr in {"read_text", "write_text"}
                assert named or not text, f"{file}:{call.lineno}: give encoding"


def test_every_part_has_a_floor():
    parts = {part_of(file) for file in PACKAGE.rglob("*.py")} - {"demo"}
    assert parts == set(FLOOR)


def test_imports_run_downward():
    for file in PACKAGE.rglob("*.py"):
        part = part_of(file)
        for module in imported_modules(file):
            other = module.partition(".")[0]
            below = FLOOR[other] < FLOOR[part]
            beside = FLOOR[other] == FLOOR[part] and not any(part in apart for apart in APART)
            assert below or beside or other == part, f"{file} imports {module}"


def test_no_import_cycle():
    """Neither between modules nor between parts of a floor."""
    graph = {}
    for file in PACKAGE.rglob("*.py"):
        name = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
        graph[name] = imported_modules(file) - {name}
    _assert_no_cycle(graph)
    parts = {}
    for name, modules in graph.items():
        part = name.partition(".")[0]
        parts.setdefault(part, set()).update(m.partition(".")[0] for m in modules)
    _assert_no_cycle({part: others - {part} for part, others in parts.items()})


def _assert_no_cycle(graph: dict[str, set[str]]) -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_import_is_quick():
    """Compared with importing JAX and Flax in the same process, which is as busy."""
    command = (
        "from time import process_time as now; before = now();"
        "import jax, flax.nnx; between = now(); import glide_jax;"
        "print(between - before, now() - between); import sys; print(*sys.modules);"
        "print(jax.config.jax_compilation_cache_dir)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}

    def import_s() -> tuple[float, float]:
        done = subprocess.run(
            [sys.executable, "-c", command], capture_output=True, text=True, env=environment
        )
        seconds, modules, cache = done.stdout.splitlines()
        assert cache == "None"  # JAX's settings are changed when models are loaded, not before
        slow = {
            "tensorflow_datasets",
            "huggingface_hub",
            "transformers",
            "torch",
            "tyro",
            "grain",
            "orbax",
        }
        assert not slow & set(modules.split())
        theirs, ours = map(float, seconds.split())
        return theirs, ours

    theirs, ours = (min(of_one) for of_one in zip(*(import_s() for _ in range(2)), strict=True))
    assert ours < theirs / 2


def test_alarms_of_xla_do_not_reach_users(monkeypatch):
    for given, expected in ((None, "3"), ("1", "1")):
        monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
        if given is not None:
            monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", given)
        importlib.reload(glide_jax)
        assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == expected


def test_files_and_functions_are_short():
    """A file is one idea, of at most 350 lines; a function fits on a screen, 60 lines."""
    root = PACKAGE.parent
    files = [root / "train.py", root / "sample.py"]
    for folder in ("glide_jax", "tests", "benchmarks", "examples", "configs"):
        files += (root / folder).rglob("*.py")
    too_long = []
    for file in files:
        source = file.read_bytes()
        if (lines := source.count(b"\n")) > 350:
            too_long.append(f"{file.relative_to(root)}: {lines} lines")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > 60:
                    too_long.append(f"{file.relative_to(root)}:{node.lineno}: {lines} lines")
    assert not too_long
