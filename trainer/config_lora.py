"""Describe the adapter that is trained: the layers that get one, how it is scaled, and modules beside it."""

import math
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from trainer.config_data import Frozen

ALL_LINEAR = "all-linear"  # PEFT's word for every linear layer but the output


class LoraConfig(Frozen):
    """One rule for alpha in every arm: `alpha` fixed, or `alpha = scaling * rank`.

    PEFT multiplies the update by alpha / rank: a fixed alpha lets it shrink as the rank grows, which
    keeps the best learning rate about the same at every rank; a fixed scaling keeps the factor. With `rslora`
    PEFT multiplies by alpha / √rank (Kalajdzievski 2023, 2312.03732).
    """

    alpha: float | None = Field(None, gt=0, le=4096)
    scaling: float | None = Field(None, gt=0, le=64)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1
    )
    rslora: bool = Field(False, description="Scale by alpha / √rank in place of alpha / rank.")
    dora: bool = Field(False, description="Train the length of each weight's columns apart (DoRA).")
    modules_to_save: tuple[str, ...] = Field(
        (), description="Modules that are trained whole, such as embed_tokens and lm_head."
    )

    adapter: Path | None = Field(
        None, description="A PEFT directory to go on from. Its settings are its own, and so is its rank."
    )

    @field_validator("target_modules", mode="before")
    @classmethod
    def _all_linear_is_a_list_of_one(cls, value: Any) -> Any:
        return (ALL_LINEAR,) if value == ALL_LINEAR else value

    @model_validator(mode="after")
    def _one_rule(self) -> "LoraConfig":
        if (self.alpha is None) == (self.scaling is None):
            raise ValueError("give either `alpha` or `scaling`")
        if self.rslora and self.scaling is not None:
            raise ValueError(
                "`rslora` needs `alpha`: a fixed `scaling` is one factor for every rank, with or without it"
            )
        return self

    @model_validator(mode="after")
    def _each_module_one_way(self) -> "LoraConfig":
        if ALL_LINEAR in self.target_modules and len(self.target_modules) > 1:
            raise ValueError(f"`target_modules` names {ALL_LINEAR} and others; give {ALL_LINEAR} alone")
        if both := sorted({*self.target_modules} & {*self.modules_to_save}):
            raise ValueError(
                f"{', '.join(both)} cannot have an adapter (`target_modules`) and be trained whole "
                "(`modules_to_save`)"
            )
        return self

    def alpha_at(self, rank: int) -> float:
        return self.alpha if self.alpha is not None else (self.scaling or 1) * rank

    def scaling_at(self, rank: int) -> float:
        """Return the factor by which PEFT multiplies the update."""
        return self.alpha_at(rank) / (math.sqrt(rank) if self.rslora else rank)
