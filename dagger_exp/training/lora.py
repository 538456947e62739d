"""Which weights of a model are trained: all, or an adapter of low rank beside them?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from dagger_exp.errors import ConfigError, check_at_least

FINETUNINGS = ("full", "lora")


@dataclass(frozen=True, kw_only=True)
class Lora:
    """An adapter of low rank (Hu et al., 2021).

    Args:
        rank: of the adapter's matrices.
        alpha: the adapter's output is scaled by `alpha / rank`.
        dropout: on the adapter's input.
        target_modules: names of the layers that get one, or `all-linear`.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str | Sequence[str] = "all-linear"

    def __post_init__(self) -> None:
        check_at_least(1, "student.lora", rank=self.rank)
        if not 0 <= self.dropout <= 1:
            raise ConfigError(f"student.lora.dropout is {self.dropout}; it must be between 0 and 1.")

    def around(self, model: Any) -> PeftModel:
        """Return the model with a fresh adapter, which is what is trained of it.

        Raises:
            ConfigError: it has no such layers, or some that take no adapter.
        """
        targets = self.target_modules if isinstance(self.target_modules, str) else list(self.target_modules)
        settings = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets,
            task_type="CAUSAL_LM",
        )
        layers = ", ".join(sorted(set(_matrices(model))))
        try:
            return get_peft_model(model, settings)
        except (ValueError, re.error) as error:
            raise ConfigError(
                f"student.lora.target_modules is {targets}, on which this model takes no adapter; choose of {layers}, "
                "or all-linear."
            ) from error


def adapted(model: Any, finetuning: str, lora: Lora | None) -> Any:
    """Return the model, with an adapter where `finetuning` is `lora`; raises `ConfigError` for any other word."""
    if finetuning not in FINETUNINGS:
        raise ConfigError(f"student.finetuning is {finetuning!r}; choose one of {', '.join(FINETUNINGS)}.")
    return (lora or Lora()).around(model) if finetuning == "lora" else model


def _matrices(model: Any) -> Iterator[str]:
    """Return the last names of the layers that are a matrix, to which an adapter can be added."""
    for name, layer in model.named_modules():
        weight = getattr(layer, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.dim() == 2:
            yield name.rsplit(".", 1)[-1]
