"""Describe every setting of a run: frozen models, unknown keys refused, ranges on the fields.

`config_file` reads them from YAML. `identity` hashes the resolved values.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from trainer.config_data import CONFIGS, DataConfig, Frozen
from trainer.config_lora import LoraConfig
from trainer.licence import wrong_name

OLLAMA = "ollama:"  # begins the name of a model in Ollama's store
EXPORT_FORMATS = ("gguf-f16", "gguf-q8_0", "gguf-q4_k_m", "gguf-lora", "adapter", "fp8")
PUSHED_FORMATS = ("adapter", "gguf-lora")  # that have a card of their own
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


Seed = Annotated[int, Field(ge=0, lt=2**32)]  # NumPy takes no other


class BaseModelConfig(Frozen):
    """The source of the base weights: a directory, a GGUF, or the Hub."""

    id: str = Field(min_length=1)
    revision: str = "main"
    licence: str = Field(min_length=1, description="An SPDX or Hugging Face licence identifier.")
    path: Path | None = Field(
        None,
        description="A Hugging Face model directory, an entry of a Hub cache, a GGUF file or its folder, or "
        "`ollama:NAME:TAG`.",
    )
    gguf_package: str | None = Field(None, description="An installed package that carries one GGUF.")
    gguf_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _one_place(self) -> "BaseModelConfig":
        if self.path and self.gguf_package:
            raise ValueError("give `path` or `gguf_package`, not both")
        return self


class SweepConfig(Frozen):
    """A grid of rank × learning rate × seed, without ranks in full fine-tuning.

    Each arm runs `steps` steps; None: as many as `train` says.

    With `halvings` the arms pause at a quarter, a half, ... of the steps, and the worse half of the settings
    stops there.
    """

    ranks: tuple[Annotated[int, Field(ge=1, le=1024)], ...] | None = Field(None, min_length=1)
    learning_rates: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(min_length=1)
    seeds: tuple[Seed, ...] = Field((7,), min_length=1)
    steps: int | None = Field(None, ge=1)
    halvings: int = Field(0, ge=0, le=6)
    parallel_arms: int = Field(
        1, ge=1, le=16, description="Arms that train at the same time on this machine."
    )

    @model_validator(mode="after")
    def _known_length(self) -> "SweepConfig":
        if self.halvings and (self.steps or 0) < 2**self.halvings:
            raise ValueError(f"{self.halvings} halvings need `steps` of at least {2**self.halvings}")
        return self


class TrainConfig(Frozen):
    """One run. The learning rate rises over `warmup_steps`, stays constant, and falls to zero at the end.

    The fall takes `cooldown_share` of the steps. Until it begins, runs of any length are the same run, so a
    short run can be continued and short runs compare fairly (Hägele et al. 2024, 2405.18392).
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16", "float16"]
    tokens_per_step: int = Field(
        ge=32, description="Maximum number of tokens in the packed rows of one step."
    )
    rows_per_step: int = Field(
        1, ge=1, description="Packed rows per step. Several processes share them; one takes them in turn."
    )
    epochs: float = Field(1.0, gt=0)
    max_steps: int | None = Field(None, ge=1, description="Replaces `epochs`.")
    warmup_steps: int = Field(5, ge=0)
    cooldown_share: float = Field(0.2, gt=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    adam_betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    max_grad_norm: float = Field(1.0, gt=0, description="A longer gradient is cut to this length.")
    save_every_steps: int = Field(ge=1)
    logging_steps: int = Field(
        1, ge=1, description="Steps between logged mean losses. A GPU waits while one is logged."
    )
    restore_best: bool = Field(
        False, description="Measure the validation loss at every checkpoint and end with the best one."
    )
    patience: int | None = Field(
        None, ge=1, description="Stop after this many checkpoints without a better validation loss."
    )
    gradient_checkpointing: bool = False
    engine: Literal["plain", "compiled", "unsloth"] = "plain"
    quantization: Literal["none", "4bit", "fp8"] = Field(
        "none", description="Number format of the frozen base in training."
    )
    optimizer: Literal["adamw_torch_fused", "adamw_8bit"] = "adamw_torch_fused"
    trackers: tuple[Literal["tensorboard", "trackio", "wandb", "mlflow"], ...] = ()
    shard_base: bool = Field(
        False, description="Split the base over the processes of a training, for a base that fits no GPU."
    )

    @property
    def row_tokens(self) -> int:
        """Return the tokens of a packed row, the most that a device works on at once."""
        return self.tokens_per_step // self.rows_per_step

    @model_validator(mode="after")
    def _patience_needs_losses(self) -> "TrainConfig":
        if self.patience and not self.restore_best:
            raise ValueError("`patience` needs `restore_best: true`, which measures the validation loss")
        return self

    @model_validator(mode="after")
    def _fp8_is_compiled(self) -> "TrainConfig":
        if self.quantization == "fp8" and self.engine != "compiled":
            raise ValueError("`quantization: fp8` needs `engine: compiled`")
        return self

    @model_validator(mode="after")
    def _shards_are_plain(self) -> "TrainConfig":
        if self.shard_base and (self.engine, self.quantization) != ("plain", "none"):
            raise ValueError("`shard_base` needs `engine: plain` and `quantization: none`")
        return self


class BenchmarkConfig(Frozen):
    """One public benchmark that lm-eval runs on base and tuned model; see trainer/judge/benchmarks.py."""

    task: Literal["ifeval", "gsm8k", "arc_challenge", "mmlu"]
    file: Path | None = Field(None, description="A JSON Lines file. None: the task's data set from the Hub.")
    limit: int | None = Field(None, ge=1, description="Items, drawn by a fixed seed. None: all.")
    max_drop: float = Field(ge=0, le=1, description="Largest drop of the score below the base's that passes.")


class EvaluateConfig(Frozen):
    """The gates that a model must pass before `current` moves. Losses are nats a token on held-out rows."""

    samples: int = Field(3, ge=1, le=64, description="Test prompts that base and tuned model answer.")
    max_new_tokens: int = Field(256, ge=1)
    max_loss_increase: float = Field(
        0.0, ge=0, description="Largest increase on the test rows above the base's that passes."
    )
    max_general_loss_increase: float = Field(
        ge=0, description="Largest increase on general chat, alone and after a conversation, that passes."
    )
    turns: int = Field(
        1, ge=1, le=16, description="Turns that the test rows must be able to measure. Every one has a gate."
    )
    max_turn_drop: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Largest drop of the share of exact answers from the first turn to a later one.",
    )
    min_stopped: float = Field(0.9, ge=0, le=1, description="Share of answers that must end by themselves.")
    stop_samples: int | None = Field(
        None,
        ge=1,
        description="Most answers that are written to measure `min_stopped`. None: as many as show it, which "
        "is 29 for 0.9 if no answer is exact.",
    )
    prompts: Path = Field(
        CONFIGS / "side_by_side_prompts.txt",
        description="Prompts that both models answer on the evaluation page, one a line. A line that begins "
        "with `>` is the next question of the same chat.",
    )
    prompt_tokens: int = Field(
        256, ge=1, le=4096, description="Maximum number of tokens in an answer to one of `prompts`."
    )
    benchmarks: tuple[BenchmarkConfig, ...] = ()

    @model_validator(mode="after")
    def _a_drop_needs_turns(self) -> "EvaluateConfig":
        if self.max_turn_drop is not None and self.turns < 2:
            raise ValueError("`max_turn_drop` needs `turns` of at least 2")
        return self

    @model_validator(mode="after")
    def _each_benchmark_once(self) -> "EvaluateConfig":
        tasks = [benchmark.task for benchmark in self.benchmarks]
        if twice := {task for task in tasks if tasks.count(task) > 1}:
            raise ValueError(f"benchmarks: {', '.join(sorted(twice))} is listed twice")
        return self


class RunConfig(Frozen):
    name: str = Field(pattern=NAME, description="The model name that clients will send.")
    description: str = Field(min_length=1, description="The purpose of the model, for page and card.")
    examples: tuple[str, ...] = Field(
        (),
        description="Prompts that a page offers. Empty: held-out ones that the model answers exactly, then "
        "general ones. Everyone who may use the API can read them.",
    )
    seed: Seed = 7
    base: BaseModelConfig
    data: DataConfig
    lora: LoraConfig | None = Field(description="None: full fine-tuning, of all weights.")
    sweep: SweepConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    ship_dtype: Literal["bfloat16", "float32"] = "bfloat16"

    @field_validator("train")
    @classmethod
    def _a_row_fits_a_packed_one(cls, train: TrainConfig, info: ValidationInfo) -> TrainConfig:
        data = info.data.get("data")  # None if it is wrong itself
        if data and data.max_length > train.row_tokens:
            raise ValueError(
                f"a packed row has {train.row_tokens} tokens (tokens_per_step / rows_per_step), and rows of "
                f"up to {data.max_length} (data.max_length) would be cut"
            )
        return train

    @model_validator(mode="after")
    def _probabilities_need_plain(self) -> "RunConfig":
        if self.data.general and self.data.general.top_tokens and self.train.engine != "plain":
            raise ValueError("`data.general.top_tokens` needs `train.engine: plain`")
        return self

    @model_validator(mode="after")
    def _ranks_are_loras(self) -> "RunConfig":
        if self.lora and not self.sweep.ranks:
            raise ValueError("sweep.ranks: expected a value, because it has no default")
        if self.sweep.ranks and not self.lora:
            raise ValueError("sweep.ranks: full fine-tuning (`lora: null`) has no ranks; leave it out")
        return self

    @model_validator(mode="after")
    def _more_than_lora_needs_plain(self) -> "RunConfig":
        train = self.train
        is_plain = (train.engine, train.quantization, train.shard_base) == ("plain", "none", False)
        if self.more_than_lora and not is_plain:
            raise ValueError(
                f"`{self.more_than_lora}` needs `train.engine: plain`, `train.quantization: none` and no "
                "`train.shard_base`"
            )
        return self

    @property
    def more_than_lora(self) -> str:
        """Return the setting that asks for more than adapters of frozen layers, or an empty text."""
        if self.lora is None:
            return "lora: null"
        if self.lora.modules_to_save:
            return "lora.modules_to_save"
        return "lora.dora" if self.lora.dora else ""

    @field_validator("base")
    @classmethod
    def _name_as_the_licence_asks(cls, base: BaseModelConfig, info: ValidationInfo) -> BaseModelConfig:
        name = info.data.get("name")  # None if it is wrong itself
        if name and (problem := wrong_name(name, base.licence)):
            raise ValueError(problem)
        return base
