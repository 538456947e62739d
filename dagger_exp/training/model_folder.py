"""What lies in a model folder? Weights, a tokenizer and how its chat is written; in a run and its checkpoint too."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from dagger_exp.errors import ConfigError, DataError

CHAT_OPTIONS = "chat_options.json"
BASE = "base"
"""Below an adapter's folder: the weights that it belongs to, where they are nowhere else."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A Hugging Face folder or hub name, and a run's checkpoint where the weights are that one's.

    Args:
        source: what Hugging Face's libraries load.
        checkpoint: of the training module, or None.
    """

    source: str
    checkpoint: Path | None = None

    @classmethod
    def at(cls, path: str, key: str = "student.init or student.path") -> ModelFolder:
        """Return what is at a path: a model folder, a run, or `RUN/checkpoints/last.ckpt`; else it is a hub name.

        Args:
            path: as it was typed.
            key: that it was typed for.

        Raises:
            ConfigError: it is a path and nothing is there.
        """
        given = Path(path)
        if _is_path(path) and not given.exists():
            raise ConfigError(f"{key} is {path}, which is not there; give a run or a model folder.")
        folder = given.parent.parent if given.suffix == ".ckpt" else given
        folder = folder / "student" if (folder / "student").is_dir() else folder
        return cls(str(folder) if folder.exists() else path, given if given.suffix == ".ckpt" else None)

    @property
    def has_adapter(self) -> bool:
        return Path(self.source, "adapter_config.json").exists()

    @property
    def base(self) -> str:
        """Where the weights are that its adapter belongs to."""
        beside = Path(self.source, BASE)
        named = PeftConfig.from_pretrained(self.source).base_model_name_or_path
        return str(beside) if beside.is_dir() else str(named or beside.resolve())

    def tokenizer(self) -> Any:
        """Return its tokenizer, which can pad."""
        tokenizer = AutoTokenizer.from_pretrained(self.source)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # many models have none
        return tokenizer

    def chat_options(self) -> Mapping[str, Any] | None:
        """Return what a run's student takes beside the messages, None of any other."""
        path = Path(self.source, CHAT_OPTIONS)
        return json.loads(path.read_text()) if path.exists() else None

    def whole(self, dtype: str) -> Any:
        """Return the model of a folder that holds all weights."""
        if self.checkpoint is None:
            return AutoModelForCausalLM.from_pretrained(self.source, dtype=getattr(torch, dtype))
        settings = AutoConfig.from_pretrained(self.source)
        model = AutoModelForCausalLM.from_config(settings, dtype=getattr(torch, dtype))
        model.load_state_dict(_weights(self.checkpoint))
        return model

    def with_adapter(self, dtype: str) -> PeftModel:
        """Return the model of an adapter's folder, of which training goes on with the adapter."""
        with loaded_from(self.base, f"the base of the adapter in {self.source}"):
            model = AutoModelForCausalLM.from_pretrained(self.base, dtype=getattr(torch, dtype))
        settings = PeftConfig.from_pretrained(self.source)
        settings.base_model_name_or_path = self.base  # what it is saved with: the weights of now, wherever they were
        settings.inference_mode = False  # as it is saved at the end of a run
        if self.checkpoint is None:
            return PeftModel.from_pretrained(model, self.source, is_trainable=True, config=settings)
        adapted = get_peft_model(model, settings)
        adapted.load_state_dict(_weights(self.checkpoint), strict=False)  # of what is frozen a checkpoint holds nothing
        return adapted


@contextmanager
def loaded_from(path: str, what: str) -> Iterator[None]:
    """Turn what libraries say of a folder that they cannot load into a `ConfigError` that says what it is."""
    try:
        if _is_path(path) and not Path(path).exists():  # taken for a name, it would be looked for
            raise FileNotFoundError("it is not there")
        yield
    except (OSError, ValueError, AttributeError, SafetensorError) as error:
        said = str(error).splitlines()[0].rstrip(".")
        by_name = f"download it first, as hf download {path} does, or give a folder"
        is_folder = _is_path(path) or Path(path).exists()
        mend = "restore the folder, or give a checkpoints/last.ckpt" if is_folder else by_name
        raise ConfigError(f"{what} is {path}, of which no model could be loaded: {said}; {mend}.") from error


def _is_path(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or name.count("/") > 1  # the hub's names are OWNER/NAME


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return what a checkpoint holds, in main memory.

    Raises:
        DataError: the file is cut, or is no checkpoint.
    """
    if not zipfile.is_zipfile(path):
        raise DataError(
            f"{path} is damaged: move it away; its run, started again, trains anew on the rounds that it has."
        )
    return torch.load(path, map_location="cpu", weights_only=False)


def _weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return the model's weights out of a checkpoint of the training module."""
    state = read_checkpoint(checkpoint)["state_dict"]
    return {name.removeprefix("model."): value for name, value in state.items()}
