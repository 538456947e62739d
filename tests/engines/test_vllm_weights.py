"""On which ways weights reach a vLLM server: what is refused, and which line starts a server for each."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dagger_exp.engines.vllm import VllmEngine
from dagger_exp.engines.vllm_server import VllmServer
from dagger_exp.errors import ConfigError


def engine(folder: Path, weights: str, lora_rank: int | None = None, **environment: str) -> VllmEngine:
    own: Any = SimpleNamespace(lora_rank=lora_rank, max_context_tokens=64, source="model")
    server = VllmServer(python="no such program", environment=environment)
    return VllmEngine(student=own, end_id=1, folder=folder, server=server, weights=weights)


@pytest.mark.parametrize("weights", ["nccl", "ipc"])
def test_a_transfer_without_a_gpu_is_refused_before_a_server_is_started(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=rf"engine\.weights={weights} .* has none: set engine\.weights=disk\."):
        engine(tmp_path, weights).load_weights(0, None)


def test_a_transfer_without_vllm_in_this_environment_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs vLLM here too: pip install .*engine\.weights=disk"):
        engine(tmp_path, "nccl").load_weights(0, None)


def test_an_adapter_is_not_transferred(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trains an adapter: set engine\.weights=disk or student\.finetuning=full"):
        engine(tmp_path, "nccl", lora_rank=8)


def test_another_way_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"engine\.weights is 'post'; choose one of disk, nccl, ipc"):
        engine(tmp_path, "post")


@pytest.mark.parametrize("weights", ["disk", "nccl", "ipc"])
def test_a_server_is_started_for_the_way_of_its_weights(weights: str, tmp_path: Path) -> None:
    line = engine(tmp_path, weights, VLLM_ALLOW_INSECURE_SERIALIZATION="1").command("model")
    assert ("--weight-transfer-config" in line) == (weights != "disk")
    assert (f'{{"backend": "{weights}"}}' in line) == (weights != "disk")


def test_pickles_are_never_allowed_unasked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\+engine\.server\.environment\.VLLM_ALLOW_INSECURE_SERIALIZATION=1"):
        engine(tmp_path, "ipc").command("model")
