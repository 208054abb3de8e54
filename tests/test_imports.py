"""The house: imports go one way, heavy libraries have one door each, and the front door opens at once."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = (
    (
        "peft_study",
        "peft_study.errors",
        "peft_study.files",
        "peft_study.native",
        "peft_study.rng",
        "peft_study.records",
        "peft_study.stats",
        "peft_study.ranking",
        "peft_study.telling",
    ),
    ("peft_study.sandbox",),
    ("peft_study.igsm", "peft_study.corpora"),
    ("peft_study.skills",),
    ("peft_study.models",),
    ("peft_study.training", "peft_study.decoding"),
    ("peft_study.evaluation",),
    ("peft_study.study",),
    ("analysis",),
    ("peft_study.cli", "peft_study.cli_data", "peft_study.__main__"),
)
"""Below first: a module imports from its own layer and those before it."""

DOORS = {
    "mlflow": (
        "peft_study.study.mlflow_store",
        "peft_study.study.tracking",
        "peft_study.study.logged_model",
        "peft_study.study.served",
        "analysis.export",
    ),
    "optuna": ("peft_study.study.ledger",),
    # served.py is run by MLflow alone, where this package need not be.
    "peft": ("peft_study.models.adapters", "peft_study.study.served"),
    "datasets": ("peft_study.igsm.export", "peft_study.corpora.sources"),
    "math_verify": ("peft_study.corpora.math",),
    "numba": ("peft_study.igsm.fast", "peft_study.ranking"),
    "bitsandbytes": ("peft_study.models.quantize",),
    "ray": ("peft_study.study.launch",),
    "matplotlib": ("analysis",),
}
"""Library to the modules, or packages, that may import it."""


def modules() -> Iterator[tuple[str, Path]]:
    for package in ("peft_study", "analysis"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path: Path) -> Iterator[str]:
    """Yield every module that a file imports, inside of functions too; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer_of(module: str) -> int | None:
    """Return the layer of a module, None where it is none of ours; the longest name counts."""
    named = [
        (len(name), layer)
        for layer, names in enumerate(LAYERS)
        for name in names
        if module == name or (module.startswith(f"{name}.") and name != "peft_study")
    ]
    if not named and module.startswith("peft_study."):
        return 0  # A name out of peft_study/__init__.py.
    return max(named)[1] if named else None


MODULES = dict(modules())


def test_there_are_modules_in_every_layer_that_is_built() -> None:
    assert {"peft_study.study.sweep", "peft_study.cli", "analysis.export"} <= MODULES.keys()


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_layer(module: str) -> None:
    rooms = {name for names in LAYERS for name in names}
    assert module in rooms or any(module.startswith(f"{room}.") for room in rooms - {"peft_study"})


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    own = layer_of(module)
    assert own is not None
    above = [name for name in imports(MODULES[module]) if (layer := layer_of(name)) is not None and layer > own]
    assert above == []


@pytest.mark.parametrize("library", DOORS)
def test_heavy_libraries_have_one_door(library: str) -> None:
    inside = {
        module
        for module, path in MODULES.items()
        if any(name == library or name.startswith(f"{library}.") for name in imports(path))
    }
    strangers = {
        module
        for module in inside
        if not any(module == door or module.startswith(f"{door}.") for door in DOORS[library])
    }
    assert strangers == set()


def test_the_rule_can_be_broken(tmp_path: Path) -> None:
    """The reader sees imports inside functions, and a layer above."""
    path = tmp_path / "module.py"
    path.write_text("import a.b\n\ndef f():\n    from peft_study.study import sweep\n")
    assert list(imports(path)) == ["a.b", "peft_study.study.sweep"]
    assert layer_of("peft_study.study.sweep") == 7
    assert layer_of("peft_study.igsm.text.END") == 2
    assert layer_of("peft_study.__version__") == 0
    assert layer_of("numpy.random") is None


def loaded_by(statement: str) -> set[str]:
    """Return the libraries that a fresh Python has loaded after `statement`."""
    script = (
        f"import sys\n{statement}\nimport json\nprint(json.dumps(sorted({{n.split('.')[0] for n in sys.modules}})))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True, cwd=ROOT
    )
    return set(json.loads(ended.stdout))


HEAVY = {"torch", "transformers", "peft", "mlflow", "optuna", "pandas", "matplotlib", "accelerate", "sqlalchemy"}


def test_importing_the_package_loads_nothing_but_python() -> None:
    assert (
        loaded_by("import peft_study, peft_study.errors, peft_study.rng, peft_study.records")
        & (HEAVY | {"numpy", "pydantic", "typer", "rich", "yaml"})
        == set()
    )


def test_the_command_line_and_the_plan_load_nothing_heavy() -> None:
    assert loaded_by("import peft_study.cli, peft_study.study.plan, peft_study.study.costs") & HEAVY == set()


def test_a_sweep_loads_training_only_when_there_is_something_to_train() -> None:
    assert loaded_by("import peft_study.study.sweep") & HEAVY == set()
