"""Light rooms stay light: no module of theirs brings a heavy package, tried in a fresh interpreter each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
importlib.import_module(sys.argv[1])
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def modules_of(room: str) -> list[str]:
    """Return the dotted names of all modules of a room, as they lie on the disk."""
    files = [PACKAGE / f"{room}.py", *sorted((PACKAGE / room).rglob("*.py"))]
    parts = (file.relative_to(PACKAGE.parent).with_suffix("").parts for file in files if file.exists())
    return [".".join(part).removesuffix(".__init__") for part in parts]


def packages_after_import(module: str) -> set[str]:
    """Return the top-level packages that a fresh interpreter holds after importing a module."""
    command = [sys.executable, "-W", "error", "-c", PROBE, module]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


LIGHT_MODULES = [module for room in LIGHT_ROOMS for module in modules_of(room)]


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_a_light_module_imports_nothing_heavy(module: str) -> None:
    forbidden = {*HEAVY, "textworld"} - MAY_BE_HEAVY.get(module, set())
    assert packages_after_import(module) & forbidden == set()


def test_rooms_are_found_on_the_disk() -> None:
    assert {"dagger_exp.types", "dagger_exp.store", "dagger_exp.envs"} <= set(LIGHT_MODULES)


def test_the_probe_sees_a_heavy_package() -> None:
    assert "wandb" in packages_after_import("wandb")


def test_packages_init_files_are_empty() -> None:
    assert [str(file) for file in PACKAGE.rglob("__init__.py") if file.read_text()] == []
