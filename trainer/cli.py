"""Fine-tune a chat model, choose the best setting, and publish the merged model.

Every stage first completes the stages before it. Exit codes: 0 success, 1 a problem, reported in one line,
130 interrupted.
"""

import argparse
import errno
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from trainer.arguments import AUTO, parser
from trainer.config import RunConfig
from trainer.config_data import CONFIGS
from trainer.config_file import from_here, load
from trainer.errors import ArmError, ArtifactError, ConfigError, TrainerError
from trainer.identity import KEEP_OLDER

if TYPE_CHECKING:  # the stages import torch, which takes seconds; a wrong flag must not
    from trainer.fit.run.cluster import Cluster
    from trainer.pipeline import Pipeline

FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, and turn expected failures into one line on standard error."""
    options = parser(__doc__).parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        _run(options)
    except TrainerError as error:
        return _report(str(error))
    except KeyboardInterrupt:
        return _report("interrupted; the same command continues from here", 130)
    except BrokenPipeError:  # of `python -m trainer … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python flushes into it again
        return _report("what read the output has ended")
    except Exception as error:
        if _is_full_disk(error):
            return _report(f"the disk under {options.artifacts} is full; free some and run the same command")
        if _is_out_of_memory(error):
            return _report("out of memory; free some, or lower train.tokens_per_step or sweep.parallel_arms")
        if getattr(error, "errno", None) not in FORBIDDEN:
            raise
        return _report(f"{error}; allow it to this user, or set ARTIFACTS_DIR to another place")
    return 0


def _is_full_disk(error: Exception) -> bool:
    """Recognise a full disk: Python gives a number, safetensors a text, torch a wrong file position."""
    named = "No space left" in str(error) or "unexpected pos" in str(error)
    return named or getattr(error, "errno", None) == errno.ENOSPC


def _is_out_of_memory(error: Exception) -> bool:
    """Recognise too little memory: Python has a class for it, and torch says it in two ways."""
    texts = ("out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(text in str(error).lower() for text in texts)


def _run(options: argparse.Namespace) -> None:
    overrides = [*options.set, *_arm_settings(options)]
    if options.config == AUTO:
        from trainer import auto_profile

        _quieten_libraries()
        options.config, why = auto_profile.choose(overrides, options.artifacts)
        print(f"{AUTO}: {why}", file=sys.stderr, flush=True)
    config = load(_config_path(options.config), overrides)
    if options.verb == "check" or options.dry_run:
        print(config.model_dump_json(indent=2), flush=True)
    if options.dry_run:
        return
    _quieten_libraries()
    if options.verb == "push":
        _push(config, options)
        return
    if options.verb == "export":  # it reads what a run has made and needs no GPU
        from trainer.ship.export import export

        export(config, options.artifacts, options.format or (), options.check)
        return
    from trainer import hashes, preflight

    hashes.keep_in(options.artifacts)
    # torchrun and accelerate set WORLD_SIZE to the number of processes that run this line.
    processes = getattr(options, "processes", int(os.environ.get("WORLD_SIZE", "1")))
    preflight.check_processes(config, options.verb, processes)
    preflight.check(config, trains_here=getattr(options, "executor", "local") == "local")
    if options.verb == "check":
        _check(config, options)
        return
    _make_stages(config, options, processes)


def _make_stages(config: RunConfig, options: argparse.Namespace, processes: int) -> None:
    """Run the stages up to the verb's, or one arm."""
    try:
        options.artifacts.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(
            f"{options.artifacts} cannot be made ({error.strerror}); set ARTIFACTS_DIR to another place"
        ) from None
    if options.verb == "arm" and config.train.engine == "unsloth":
        import trainer.engines.unsloth  # noqa: F401  patches what the next import brings in
    from trainer.pipeline import Pipeline

    ship_despite = options.verb == "run" and options.ship_despite_failed_gates
    pipeline = Pipeline(
        config,
        options.artifacts,
        _arm_command(options),
        _cluster(config, options),
        processes,
        ship_despite,
        options.keep_older_runs,
    )
    if options.verb == "arm":
        _train_arm(config, pipeline, options)
    else:
        pipeline.run(until="publish" if options.verb == "run" else options.verb)


def _arm_settings(options: argparse.Namespace) -> list[str]:
    """Return the flags of `arm` as settings of the sweep, whose ranges hold for them too."""
    flags = {"sweep.ranks": "rank", "sweep.learning_rates": "learning_rate", "sweep.seeds": "seed"}
    given = {setting: getattr(options, flag, None) for setting, flag in flags.items()}
    return [f"{setting}=[{value}]" for setting, value in given.items() if value is not None]


def _cluster(config: RunConfig, options: argparse.Namespace) -> "Cluster | None":
    if options.verb != "sweep":
        return None
    if options.executor == "local":
        for name in ("address", "cpus_per_arm", "gpus_per_arm"):
            if getattr(options, name) is not None:
                raise ConfigError(f"--{name.replace('_', '-')} needs --executor ray")
        return None
    from trainer.fit.run.cluster import connect

    cpus = 1 if options.cpus_per_arm is None else options.cpus_per_arm
    return connect(options.address, cpus, options.gpus_per_arm, config.train.device)


def _train_arm(config: RunConfig, pipeline: "Pipeline", options: argparse.Namespace) -> None:
    from trainer.fit.arm import arms
    from trainer.fit.run.adapter import check_adapter
    from trainer.fit.run.train import train

    arm = arms(config)[0]
    base, prepared = pipeline.found_or_made()
    if config.lora and arm.setting.rank:
        check_adapter(base.directory, [arm.setting.rank], config.lora)
    try:
        train(config, base, prepared, arm, options.steps, options.artifacts, options.keep_older_runs)
    except (MemoryError, RuntimeError) as error:
        if _is_out_of_memory(error):
            raise ArmError(f"{arm.name}: out of memory; lower train.tokens_per_step") from None
        raise


def _check(config: RunConfig, options: argparse.Namespace) -> None:
    from trainer.pipeline import Pipeline

    Pipeline(config, options.artifacts, arm_command=[]).check()


def _push(config: RunConfig, options: argparse.Namespace) -> None:
    from trainer.ship.push import push

    what = (options.private, options.upload, options.allow_override, options.format)
    push(config, options.artifacts, options.to, *what)


def _config_path(name: str) -> Path:
    shipped = CONFIGS / f"{name}.yaml"
    return shipped if shipped.is_file() else Path(name)


def _arm_command(options: argparse.Namespace) -> list[str]:
    config = _config_path(options.config)
    command = ["arm", "--config", str(config.absolute()), "--artifacts", str(options.artifacts.absolute())]
    if options.keep_older_runs:
        command.append(KEEP_OLDER)
    return command + [part for value in options.set for part in ("--set", from_here(value))]


def _quieten_libraries() -> None:
    """Turn off progress bars and telemetry of libraries. Must run before they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    # Threads that spin while they wait cost a busy machine three quarters of its speed.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _report(message: str, code: int = 1) -> int:
    print(f"trainer: {message}", file=sys.stderr, flush=True)
    return code
