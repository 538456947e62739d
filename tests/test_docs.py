"""The reference of keys lists all of them, and links between Markdown files lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from omegaconf import OmegaConf

from dagger_exp.analysis.settings import flat
from dagger_exp.config.composing import compose_checked

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("config_reference", ROOT / "docs" / "config_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_key_of_a_run_is_in_the_reference(reference: ModuleType) -> None:
    text = reference.reference()
    config: Any = OmegaConf.to_container(compose_checked("train", []))
    keys = [key for key in flat(config) if key.rpartition(".")[2] not in ("_target_", "_partial_")]
    assert len(keys) > 80
    assert [key for key in keys if f"| `{key}` |" not in text] == []


def test_every_option_is_in_the_reference(reference: ModuleType) -> None:
    text = reference.reference()
    options = [path for path in (ROOT / "conf").glob("*/*.yaml") if path.parent.name != "local"]
    assert [path for path in options if f"\n### `{path.parent.name}={path.stem}`\n" not in text] == []


def test_a_key_is_described_by_its_comment_else_by_the_docstring(reference: ModuleType) -> None:
    text = reference.reference()
    assert "| `sandbox.limits.cpu_s` | `1800` | CPU time of one process |" in text
    assert "| `env.num_symptoms` | `12` | different answers of a failing test in the world |" in text


def test_a_target_that_does_not_exist_stops_the_build(reference: ModuleType) -> None:
    with pytest.raises(LookupError, match="no such class"):
        reference.target_of("dagger_exp.schedules.Missing")


def test_links_between_markdown_files_lead_somewhere() -> None:
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    pages = [ROOT / name for name in listed.stdout.split()]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())]
    assert len(links) > 20
    assert [(page.name, link) for page, link in links if not (page.parent / link).exists()] == []
