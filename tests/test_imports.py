"""Light rooms stay light: no module of theirs brings a heavy package, tried in a fresh interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "dagger_exp"
HEAVY = ("torch", "transformers", "vllm", "lightning", "wandb")
LIGHT_ROOMS = (
    "types",
    "protocols",
    "errors",
    "schedules",
    "seeding",
    "store",
    "sandboxes",
    "scaffolds",
    "envs",
    "policies",
    "rollout",
    "analysis",
)
MAY_BE_HEAVY = {"dagger_exp.analysis.wandb_source": {"wandb"}}
PROBE = """
import importlib, json, sys
brought = {}
for module in sys.argv[1:]:
    before = set(sys.modules)
    importlib.import_module(module)
    brought[module] = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
print(json.dumps(brought))
"""


def modules_of(room: str) -> list[str]:
    """Return the dotted names of all modules of a room, as they lie on the disk."""
    files = [PACKAGE / f"{room}.py", *sorted((PACKAGE / room).rglob("*.py"))]
    parts = (file.relative_to(PACKAGE.parent).with_suffix("").parts for file in files if file.exists())
    return [".".join(part).removesuffix(".__init__") for part in parts]


def packages_brought(modules: Sequence[str]) -> dict[str, set[str]]:
    """Return the top-level packages that each module brings into a fresh interpreter, imported one after the other."""
    command = [sys.executable, "-W", "error", "-c", PROBE, *modules]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {module: set(packages) for module, packages in json.loads(done.stdout.splitlines()[-1]).items()}


LIGHT_MODULES = [module for room in LIGHT_ROOMS for module in modules_of(room)]


def test_no_light_module_imports_anything_heavy() -> None:
    last = sorted(LIGHT_MODULES, key=MAY_BE_HEAVY.__contains__)  # what may bring a package hides nobody who may not
    forbidden = {module: {*HEAVY, "textworld"} - MAY_BE_HEAVY.get(module, set()) for module in last}
    heavy = {module: packages & forbidden[module] for module, packages in packages_brought(last).items()}
    assert {module: packages for module, packages in heavy.items() if packages} == {}


def test_rooms_are_found_on_the_disk() -> None:
    assert {"dagger_exp.types", "dagger_exp.store", "dagger_exp.envs"} <= set(LIGHT_MODULES)


def test_the_probe_sees_a_heavy_package() -> None:
    assert "wandb" in packages_brought(["json", "wandb"])["wandb"]


METRICS = """
import dagger_exp, lightning, sys
assert not {"torchmetrics.functional", "scipy.signal"} & sys.modules.keys()
import torchmetrics
from torchmetrics import Metric
from torchmetrics.classification import BinaryAccuracy
assert isinstance(BinaryAccuracy(), Metric) and issubclass(torchmetrics.MeanMetric, torchmetrics.metric.Metric)
assert "scipy.signal" in sys.modules and not hasattr(torchmetrics, "NoSuchMetric")
"""


def test_torchmetrics_is_loaded_when_it_is_used_and_is_then_as_without_us() -> None:
    names = "import torchmetrics; print(sorted(name for name in dir(torchmetrics) if name[0].isalpha()))"
    ours, theirs = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for code in (METRICS + names, names)
    )
    assert ours == theirs


def test_packages_init_files_are_empty() -> None:
    """But for that of the whole package, which comes before every import of Arrow and of Lightning."""
    assert [file for file in PACKAGE.rglob("__init__.py") if file.read_text()] == [PACKAGE / "__init__.py"]
    code = "import dagger_exp.store.store, pyarrow; print(pyarrow.default_memory_pool().backend_name)"
    done = subprocess.run([sys.executable, "-c", code], env={}, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "system\n"
