"""Stage `train`: train one arm for a number of steps, from the prepared rows to its weights and their scores.

A run that was killed continues from its last whole checkpoint and ends with the same weights. A run that
diverges is finished too, with the reason in place of weights, and is not repeated. Where several processes
share a run, rank 0 writes.
Writes `runs/<arm>/<steps>/`: `log.jsonl`, `adapter/` (`model/` in full fine-tuning) and, last, `result.json`.
"""

import contextlib
import importlib
import math
import resource
import shutil
import statistics
import time
from pathlib import Path
from typing import Any, Literal, cast

import torch

from trainer.base_model import BaseModel, load_tokenizer
from trainer.config import RunConfig
from trainer.data.prepare import Prepared
from trainer.device import choose_device
from trainer.engines import Engine
from trainer.files import only_writer, sync_files, write_json
from trainer.fit.arm import Arm, Run, place_of, read_run, run_name, trained_folder
from trainer.fit.run.apart import rows_stay_apart, shares_positions_beyond
from trainer.fit.run.callbacks import Checkpoints, DivergedError, Log, Patience, ShowProgress, StopDiverged
from trainer.fit.run.checkpoint import keep_trunk, remove_checkpoints, starting_point
from trainer.fit.run.trainer import ArmTrainer, build_trainer, cooldown_steps
from trainer.fit.run.world import World
from trainer.identity import made_by, older_line, write_record
from trainer.objective import objective_of
from trainer.objective.score import mean_score
from trainer.progress import Progress, say


def train(
    config: RunConfig,
    base: BaseModel,
    prepared: Prepared,
    arm: Arm,
    steps: int | None,
    artifacts: Path,
    keep_older: bool = False,
) -> Run:
    """Train one arm, or return the run if it is finished.

    steps: None for what `config.train` says. keep_older: finish what other code began, if there is anything.
    """
    place = place_of(config, base, prepared.fingerprint, arm, artifacts, keep_older)
    directory = place.directory / run_name(config, steps)
    world = World(choose_device(config.train.device))
    with only_writer(directory) if world.first else contextlib.nullcontext():
        if world.agree(lambda: read_run(directory, arm)) is None:
            if world.first:
                if place.older:
                    say(older_line(f"{arm.name} was", place.older.differs, keep_older))
                write_record(place.directory, place.key)
            _train(config, base, prepared, arm, steps or config.train.max_steps, directory, world)
        run = world.agree(lambda: read_run(directory, arm))
    world.leave()
    assert run
    return run


def _train(
    config: RunConfig,
    base: BaseModel,
    prepared: Prepared,
    arm: Arm,
    steps: int | None,
    directory: Path,
    world: World,
) -> None:
    settings = config.train
    device = choose_device(settings.device)
    engine = _engine(settings.engine)
    objective = objective_of(config)
    model = engine.load(base.directory, settings, config.lora, arm.setting.rank, arm.seed, device)
    # `compiled` attends by the rows' lengths; a probe of another shape would be compiled, too.
    together = settings.engine == "compiled" or (
        config.data.max_length <= (shares_positions_beyond(model.config) or math.inf)
        and rows_stay_apart(engine, objective, model)
    )
    with Progress() as progress:
        if world.first and not together:
            progress.say(
                f"  {arm.name}: this base would let packed rows see each other; each is trained alone"
            )
        trainer = build_trainer(
            model, objective, engine, load_tokenizer(base.directory), prepared.dataset("train"),
            prepared.rows("validation"), settings, arm, steps, device, directory,
            [Log(directory), ShowProgress(arm.name, progress)] if world.first else [], world, together,
        )  # fmt: skip
        total = trainer.args.max_steps
        cooldown_start = total - cooldown_steps(settings, total)
        checkpoint = world.agree(lambda: starting_point(directory, total, cooldown_start))
        if world.first and checkpoint and checkpoint.name == f"checkpoint-{cooldown_start}":
            keep_trunk(checkpoint)  # a kill may have come between the two
        trainer.add_callback(Checkpoints(cooldown_start))
        trainer.add_callback(StopDiverged())  # after all that ask for a checkpoint
        if settings.patience:
            trainer.add_callback(Patience(settings.patience))
        if world.first and checkpoint:
            progress.say(f"  {arm.name}: continues from {checkpoint.parent.name}/{checkpoint.name}")
        record = _run(trainer, checkpoint, directory / trained_folder(arm), world)
    if world.first:
        _finish(arm, base, record, directory)


def _finish(arm: Arm, base: BaseModel, record: dict[str, Any], directory: Path) -> None:
    if not record["diverged"]:
        trained = directory / trained_folder(arm)
        if arm.setting.rank:  # the base that the adapter belongs to, for a server
            write_json(trained / "base.json", {"weights_sha256": base.weights_sha256})
        else:  # training switches the cache off, and TRL sets special tokens
            for name in ("config.json", "generation_config.json"):
                if (base.directory / name).is_file():
                    shutil.copyfile(base.directory / name, trained / name)
        sync_files(trained)  # a power cut must not leave the result without it
    write_json(directory / "result.json", {"arm": arm.name, "made_by": made_by(), **record})
    if not record["diverged"]:
        remove_checkpoints(directory)


def _run(trainer: ArmTrainer, checkpoint: Path | None, trained: Path, world: World) -> dict[str, Any]:
    """Train to the end and save what was trained; return the record of the run."""
    begun = time.monotonic()
    diverged, validation = None, None
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        train_s = time.monotonic() - begun
        scores = trainer.validation_scores()
        if not math.isfinite(mean_score(scores)):
            raise DivergedError(f"the validation {trainer.objective.SCORE.name} is {mean_score(scores)}")
        if world.first:
            trainer.model.save_pretrained(trained)
        validation = {
            trainer.objective.SCORE.name: mean_score(scores),
            "rows": [[x.total, x.weight, x.hit] for x in scores],
        }
    except DivergedError as error:
        train_s, diverged = time.monotonic() - begun, str(error)
    history, state, sign = trainer.state.log_history, trainer.state, trainer.objective.SCORE.sign
    rates = [h["tokens_per_second"] for h in history if "tokens_per_second" in h]
    return {
        "steps": state.global_step,
        "best_step": state.best_global_step or state.global_step,
        "processes": world.size,
        "train_seconds": round(train_s, 2),
        "tokens_per_second": round(statistics.median(rates), 1) if rates else None,
        "resumed_from": checkpoint.name if checkpoint else None,
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "peak_gpu_memory_gib": _gpu_memory_gib(),
        "train_curve": [[h["step"], h["loss"]] for h in history if "loss" in h],
        **{
            f"{part}_curve": [[h["step"], h[f"{part}_loss"]] for h in history if f"{part}_loss" in h]
            for part in ("task", "general")
        },
        "validation_curve": [[h["step"], sign * h["eval_loss"]] for h in history if "eval_loss" in h],
        "diverged": diverged,
        "validation": validation,
    }


def _engine(name: Literal["plain", "compiled", "unsloth"]) -> Engine:
    """Imported by need: `unsloth` patches the libraries that the others use."""
    engine: Any = importlib.import_module(f"trainer.engines.{name}")
    return cast(Engine, engine)


def _gpu_memory_gib() -> float | None:
    if not torch.cuda.is_available():
        return None
    return round(float(torch.cuda.max_memory_allocated()) / 2**30, 2)
