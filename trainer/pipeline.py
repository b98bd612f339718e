"""Run the stages in order: base → prepare → sweep → train → merge → evaluate → publish.

Every stage looks for its finished result first. So a stopped run continues where it was, and a second run
does nothing.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from trainer import base_model
from trainer.base_model import BaseModel
from trainer.config import RunConfig
from trainer.config_data import describe_sources
from trainer.data.prepare import Prepared, find_prepared, prepare
from trainer.device import choose_device
from trainer.errors import ArmError
from trainer.files import only_writer, read_json, whole_directory, write_json
from trainer.fit.arm import Arm, Run, Setting, arms, place_of, read_run, run_name
from trainer.fit.run.checkpoint import step_of
from trainer.fit.run.cluster import Cluster
from trainer.fit.run.processes import run_arms as run_here
from trainer.fit.run.sweep import Sweep, no_result
from trainer.identity import artifact_id, differences, evaluation_key, made_by, merged_key, older_line
from trainer.judge.benchmarks import check_items
from trainer.judge.evaluate import evaluate
from trainer.judge.gates import failed_gates, shippable
from trainer.judge.turns import caveat, name_of
from trainer.knowable import check_base, check_data, check_room, limits
from trainer.objective import objective_of
from trainer.objective.score import mean_score
from trainer.pages.data_report import write_page as write_data_page
from trainer.pages.evaluation import write_page as write_evaluation_page
from trainer.pages.sweep import write_page as write_sweep_page
from trainer.progress import Stages, say
from trainer.ship.manifest import build_manifest
from trainer.ship.merge import merge
from trainer.ship.store import Artifact, find, make_current, publish

MERGE_CHECK = "merge_check.json"
SAMPLES = "samples.json"
PAGE = "evaluation.html"
STAGES = ("base", "prepare", "sweep", "train", "merge", "evaluate", "publish")


class Pipeline:
    """One run of one configuration in one artifacts directory.

    arm_command: the `arm` verb with its configuration, for the processes that train.
    cluster: that the sweep's arms run on; None: this machine. processes: share the training of `train`, and
    with `train.shard_base` that of every arm, one after another.
    ship_despite_failed_gates: publish a model that failed its gates, and say so in its manifest.
    keep_older_runs: use data and runs that other code or packages made, too.
    """

    def __init__(
        self,
        config: RunConfig,
        artifacts: Path,
        arm_command: Sequence[str],
        cluster: Cluster | None = None,
        processes: int = 1,
        ship_despite_failed_gates: bool = False,
        keep_older_runs: bool = False,
    ) -> None:
        self.config = config
        self.artifacts = artifacts
        self.models = artifacts / "models"
        self._arm_command = arm_command
        self._cluster = cluster
        self._processes = processes
        self._ship_despite = ship_despite_failed_gates
        self._objective = objective_of(config)
        self._keep_older = keep_older_runs
        self._stages = Stages(STAGES)

    def base(self) -> BaseModel:
        with self._stages.stage("base", f"get {self.config.base.id} ready"):
            base = base_model.fetch(self.config.base, self.artifacts)
            for remark in check_base(self.config, base):
                say(f"  {remark}")
            return base

    def prepare(self, base: BaseModel) -> Prepared:
        with self._stages.stage("prepare", f"tokenise {describe_sources(self.config.data, public=True)}"):
            prepared = self._prepared(base, describe=True)
            for remark in check_data(self.config, base.directory, prepared):
                say(f"  {remark}")
            return prepared

    def check(self) -> None:
        """Check what the base and the prepared data show, as far as they are on this machine already.

        Raises: TrainerError.
        """
        check_items(self.config.evaluate.benchmarks)
        base = base_model.local(self.config.base, self.artifacts)
        if base is None:
            say(f"{base_model.missing(self.config.base)}; `prepare` does it and checks the rest")
            return
        remarks = check_base(self.config, base)
        prepared = find_prepared(self.config, base, self.artifacts, self._keep_older)
        if prepared is None:
            say("the data is not prepared yet; `prepare` checks whether the gates can be measured on it")
        if prepared:
            remarks += check_data(self.config, base.directory, prepared)
        for line in (*remarks, *limits(self.config, base.directory, prepared)):
            say(f"note: {line}")

    def sweep(self, base: BaseModel, prepared: Prepared) -> tuple[Setting, dict[str, Any]]:
        ranks = " and ".join(map(str, self.config.sweep.ranks or ()))
        what = f"LoRA at rank {ranks}" if ranks else "all weights"
        with self._stages.stage("sweep", f"train {what}, choose on validation loss"):
            if self._cluster:
                run_arms = partial(self._cluster.run_arms, command=self._arm_command)
            elif self.config.train.shard_base:
                run_arms = partial(run_here, command=self._arm_command, processes=self._processes)
            else:
                parallel = self.config.sweep.parallel_arms
                run_arms = partial(run_here, command=self._arm_command, parallel=parallel)
            return Sweep(
                self.config, base, prepared, self.artifacts, run_arms, write_sweep_page, self._keep_older
            ).run()

    def train(self, base: BaseModel, prepared: Prepared, setting: Setting) -> Run:
        """The chosen setting for as long as the configuration says. Raises: ArmError."""
        arm = Arm(setting, self.config.seed)
        place = place_of(self.config, base, prepared.fingerprint, arm, self.artifacts, self._keep_older)
        directory = place.directory / run_name(self.config, None)
        with self._stages.stage("train", f"{arm.name} over {prepared.report['rows']['train']} rows"):
            if place.older and arm not in arms(self.config):  # the sweep has said it of its own
                say(older_line(f"{arm.name} was", place.older.differs, self._keep_older))
            if read_run(directory, arm) is None:
                failed = run_here({arm: directory}, None, self._arm_command, processes=self._processes)
                if failed:
                    raise ArmError(f"{arm.name}: {failed[arm]}; see {directory / 'output.txt'}")
            run = read_run(directory, arm)
            if run is None:
                raise ArmError(no_result(arm, directory))
            if run.diverged:
                kept = max(directory.glob("checkpoint-*"), key=step_of, default=None)
                raise ArmError(
                    f"{arm.name} diverged: {run.diverged}. Lower the learning rate or lengthen "
                    f"train.warmup_steps; the last good checkpoint is {kept or 'none: it was too early'}"
                )
            score = self._objective.SCORE
            value = mean_score(run.validation)
            say(f"  {arm.name}: validation {score.name} {value:.4f} {score.unit}")
            return run

    def found_or_made(self) -> tuple[BaseModel, Prepared]:
        """Base and data for a single arm, without the lines of the stages."""
        base = base_model.fetch(self.config.base, self.artifacts)
        return base, self._prepared(base)

    def _prepared(self, base: BaseModel, describe: bool = False) -> Prepared:
        rows_of = self._objective.rows
        return prepare(
            self.config, base, self.artifacts, write_data_page, self._keep_older, rows_of, describe
        )

    def run(self, until: str = "publish") -> None:
        """Run the stages up to and with `until`. Raises: TrainerError."""
        base = self.base()
        prepared = self.prepare(base)
        if until in ("base", "prepare"):
            self._before_training(base)
            return
        identifier = artifact_id(self.config, base.sha256, prepared.fingerprint)
        with only_writer(self.models / identifier):
            artifact = find(self.models, identifier)
            if artifact:
                for name in STAGES[2:]:
                    self._stages.skipped(name, f"{identifier} is finished")
                self._describe_older(artifact)
            else:
                artifact = self._make(base, prepared, identifier, until)
            if artifact and until == "publish":
                make_current(artifact, self._ship_despite)
                for failed in failed_gates(artifact.manifest["evaluation"]):
                    say(f"  WARNING: `current` is a model that FAILED its gate {failed}")

    def _before_training(self, base: BaseModel) -> None:
        """Check what the stages after the training need. Raises: MissingError."""
        check_room(self.config, base.directory, self.artifacts)
        check_items(self.config.evaluate.benchmarks)

    def _make(self, base: BaseModel, prepared: Prepared, identifier: str, until: str) -> Artifact | None:
        """Run the stages after `prepare`, up to and with `until`; the last one returns the artifact."""
        self._before_training(base)
        setting, selection = self.sweep(base, prepared)
        if until == "sweep":
            return None
        winner = self.train(base, prepared, setting)
        if until == "train":
            return None
        key = self._merged_key(base, prepared, winner)
        merged = self.artifacts / "merged" / f"{self.config.name}-{key[:8]}"
        with only_writer(merged):  # artifacts that differ in their evaluation share it
            self._merge(base, prepared, winner, merged)
            if until == "merge":
                return None
            evaluation = self._evaluate(base, prepared, merged, key, identifier)
            if until == "evaluate":
                return None
            return self._publish(base, prepared, winner, selection, merged, evaluation, identifier)

    def _publish(
        self,
        base: BaseModel,
        prepared: Prepared,
        winner: Run,
        selection: dict[str, Any],
        merged: Path,
        evaluation: dict[str, Any],
        identifier: str,
    ) -> Artifact:
        with self._stages.stage("publish", f"write {self.models / identifier}"):
            merge_check = read_json(merged / MERGE_CHECK)
            answers = {name: evaluation.pop(name) for name in ("samples", "side_by_side")}
            examples = evaluation.pop("examples", [])
            write_json(merged / SAMPLES, answers["samples"])
            write_evaluation_page(merged / PAGE, identifier, evaluation, self._objective, **answers)
            manifest = build_manifest(
                identifier, self.config, base, prepared, winner, selection, merge_check, evaluation, examples
            )
            files = base.licence_files()
            return publish(merged, self.models / identifier, manifest, self._objective, files)

    def _describe_older(self, artifact: Artifact) -> None:
        """Print whether other code or packages made the finished artifact, which stays as it is."""
        packages, now = artifact.manifest["packages"], made_by()
        if differs := differences({name: packages[name] for name in now if name in packages}, now):
            where = artifact.directory
            say(f"  {where.name} was made by {differs}; remove {where} to make it again")

    def _merged_key(self, base: BaseModel, prepared: Prepared, winner: Run) -> str:
        place = place_of(self.config, base, prepared.fingerprint, winner.arm, self.artifacts)
        return merged_key(self.config, place.key, winner.adapter)

    def _merge(self, base: BaseModel, prepared: Prepared, winner: Run, merged: Path) -> None:
        verb = "merge" if self.config.lora else "cast"
        with self._stages.stage("merge", f"{verb} {winner.arm.name} in fp32 and check it"):
            if read_json(merged / MERGE_CHECK) is None:
                device = choose_device(self.config.train.device)
                with whole_directory(merged) as scratch:
                    check = merge(
                        base, winner.adapter, prepared.rows("test"), self.config.ship_dtype,
                        self.config.train.dtype, device, scratch, prepared.chat_template,
                    )  # fmt: skip
                    write_json(scratch / MERGE_CHECK, check)
            check = read_json(merged / MERGE_CHECK)
            exact = check["fp32"]  # None where nothing was merged
            largest = f"max logit difference {exact['max_logit_difference']:.1e} in fp32; " if exact else ""
            say(
                f"  over {check['positions']} tokens: {largest}top-1 agreement "
                f"{check['shipped']['top1_agreement']:.4f} as shipped in {self.config.ship_dtype}"
            )

    def _evaluate(
        self, base: BaseModel, prepared: Prepared, merged: Path, key: str, identifier: str
    ) -> dict[str, Any]:
        """Return the manifest's `evaluation`, the answers and the examples. key: the merged model's.

        Raises: GateError if it must not be shipped.
        """
        name = f"{self.config.name}-{evaluation_key(self.config, key)[:8]}"
        kept = self.artifacts / "evaluations" / f"{name}.json"
        with self._stages.stage("evaluate", "the merged model against the base on test rows"):
            if read_json(kept) is None:
                summary, answers = evaluate(
                    self.config.evaluate,
                    self._objective,
                    base.directory,
                    merged,
                    prepared.rows("test"),
                    prepared.rows("general"),
                    prepared.rows("followup") if "followup" in prepared.report["rows"] else [],
                    self.config.train.dtype,
                    choose_device(self.config.train.device),
                )
                shown = (answers["samples"], answers["side_by_side"])
                write_evaluation_page(kept.with_suffix(".html"), identifier, summary, self._objective, *shown)
                write_json(kept, {**summary, **answers})
            summary = read_json(kept)
            for metric in summary["metrics"]:
                before, after = metric["base"]["value"], metric["tuned"]["value"]
                name, n = name_of(metric), metric["n"]
                say(f"  {name}: {before:.3f} → {after:.3f} ({metric['unit']}, n = {n})")
            if note := caveat(summary):
                say(f"  {note}")
        return shippable(summary, identifier, self._ship_despite, kept.with_suffix(".html"))
