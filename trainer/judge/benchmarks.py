"""Run public benchmarks through lm-eval: base and tuned model on the same items, paired.

`evaluate.benchmarks` goes in; one metric and one gate for each benchmark come out, in the manifest's form.
The items are a JSON Lines file in the shape of the task's own data set, or that data set from the Hub. The
task itself (prompt, generation, checker) is that of the installed lm-eval. Every task runs without examples
(0-shot) in the model's chat template, because that is how users ask a chat model and because a local file
then needs no second file with examples. So the figures compare two models; they do not compare with
leaderboards. Generated answers are greedy and without the penalties that a base suggests.

The floor is the score of lm-eval's dummy model on these items: random choices, and the answer "lol".
A base that is not measurably above it can show no regression: the gate still applies, and says so.
"""

import contextlib
import io
import logging
import random
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from trainer.base_model import load_model, load_tokenizer
from trainer.config import BenchmarkConfig
from trainer.errors import MissingError
from trainer.files import sha256_file
from trainer.fit.choose.intervals import share_difference, share_interval
from trainer.generation import bare_distribution
from trainer.judge.tasks import PUNKT_PACKAGE, TASKS, sentence_splitter
from trainer.progress import say

ITEMS_SEED = 0


def compare(
    benchmarks: Sequence[BenchmarkConfig], base: Path, shipped: Path, dtype: str, device: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Run every benchmark on the dummy, the base and the shipped model: (metrics, gates).

    Raises: MissingError if lm-eval or a data set cannot be had.
    """
    if not benchmarks:
        return [], []
    with tempfile.TemporaryDirectory(prefix="finechat-benchmarks-") as scratch:
        harness = _Harness(benchmarks, Path(scratch))
        floor = harness.dummy_scores()
        template = load_tokenizer(shipped).get_chat_template()
        before = harness.scores("base", base, template, dtype, device)
        after = harness.scores("tuned", shipped, template, dtype, device)
    metrics = [
        metric_of(benchmark, harness.items[benchmark.task], floor[name], before[name], after[name])
        for benchmark in benchmarks
        for name in [benchmark.task]
    ]
    return metrics, [gate_of(b, metric) for b, metric in zip(benchmarks, metrics, strict=True)]


def check_items(benchmarks: Sequence[BenchmarkConfig]) -> None:
    """Check that every benchmark can be asked, by letting lm-eval's dummy model answer all of them.

    Raises: MissingError if lm-eval or a data set cannot be had, or has rows of another shape.
    """
    if benchmarks:
        with tempfile.TemporaryDirectory(prefix="finechat-benchmarks-") as scratch:
            _Harness(benchmarks, Path(scratch)).dummy_scores()


class _Harness:
    """lm-eval over the configured tasks, with all that it writes kept inside `scratch`."""

    def __init__(self, benchmarks: Sequence[BenchmarkConfig], scratch: Path) -> None:
        if any(benchmark.task == "ifeval" for benchmark in benchmarks):
            _copy_sentence_splitter(scratch / "nltk")
        import lm_eval.tasks

        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of a model handed over loaded
        for benchmark in benchmarks:
            settings = _settings(benchmark, Path(lm_eval.tasks.__file__).parent, scratch)
            (scratch / f"{benchmark.task}.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        self._manager = lm_eval.tasks.TaskManager(include_path=str(scratch), include_defaults=False)
        self.items = {b.task: len(list(self._load(b.task).eval_docs)) for b in benchmarks}
        self._drawn: dict[str, list[int]] = {
            b.task: drawn_items(self.items[b.task], b.limit) for b in benchmarks
        }

    def dummy_scores(self) -> dict[str, Any]:
        from lm_eval.models.dummy import DummyLM

        random.seed(ITEMS_SEED)  # the dummy's choices
        found = {}
        for name in self._drawn:
            try:
                found[name] = self._run(name, DummyLM(), chat=False)
            except Exception as error:  # a task's own code reads the rows
                raise _unreadable(name, error) from None
        return found

    def scores(self, side: str, directory: Path, template: str, dtype: str, device: str) -> dict[str, Any]:
        """task → (items,) float64 of 0 and 1, in the order of the drawn items. template: of both models."""
        from lm_eval.models.huggingface import HFLM

        model, tokenizer = load_model(directory, dtype, device), load_tokenizer(directory)
        tokenizer.chat_template = template
        found = {}
        for name, drawn in self._drawn.items():
            say(f"  benchmark {name}: {len(drawn)} items, {side}")
            lm = HFLM(
                pretrained=model, tokenizer=tokenizer, backend="causal",
                batch_size=TASKS[name].rows_at_once,
                softmax_dtype="float32",  # in bfloat16 two choices are often equally likely
            )  # fmt: skip
            with bare_distribution(model):
                found[name] = self._run(name, lm, chat=True)
        return found

    def _run(self, name: str, lm: Any, chat: bool) -> Any:
        from lm_eval.evaluator import evaluate

        # lm-eval's bars ignore TQDM_DISABLE; in a log they would be thousands of lines.
        bars = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
        with bars:
            results = evaluate(
                lm=lm,
                task_dict=self._manager.load([name]),
                samples={name: self._drawn[name]},
                apply_chat_template=chat,
                bootstrap_iters=0,
            )
        task = TASKS[name]
        rows = [row for row in results["samples"][name] if row["filter"] == task.filter]
        return np.array([row[task.score] for row in sorted(rows, key=lambda r: r["doc_id"])], float)

    def _load(self, name: str) -> Any:
        try:
            return self._manager.load([name])["tasks"][name]
        except Exception as error:  # the hub's, the network's and the file reader's share no base
            raise _unreadable(name, error) from None


def _unreadable(name: str, error: Exception) -> MissingError:
    return MissingError(
        f"the items of benchmark {name} cannot be read ({type(error).__name__}: "
        f"{' '.join(str(error).split())[:200]}); set its `file` to a JSON Lines file in the shape "
        f"of {TASKS[name].dataset}"
    )


def _settings(benchmark: BenchmarkConfig, tasks: Path, scratch: Path) -> dict[str, Any]:
    """Return the task's YAML: that of lm-eval, 0-shot, with the place of the items."""
    task = TASKS[benchmark.task]
    settings = {
        "include": str(tasks / task.include),
        "task": benchmark.task,
        "tag": None,
        "num_fewshot": 0,
        "fewshot_split": None,
        "fewshot_config": None,
        "training_split": None,
        "validation_split": None,
        **task.changes,
    }
    if benchmark.file:
        settings |= {
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {
                "data_files": {task.split: str(benchmark.file)},
                "cache_dir": str(scratch / "datasets"),
            },
        }
    return settings


def drawn_items(items: int, limit: int | None) -> list[int]:
    """Return all items, or `limit` of them by a fixed seed, because files are often sorted by subject."""
    if limit is None or limit >= items:
        return list(range(items))
    return sorted(random.Random(ITEMS_SEED).sample(range(items), limit))


def _copy_sentence_splitter(folder: Path) -> None:
    """Copy it to where NLTK finds it: NLTK refuses hard links, by which uv installs packages."""
    found = sentence_splitter()
    if found is None:
        raise MissingError(f"benchmark ifeval needs the package {PUNKT_PACKAGE}; see requirements-benchmarks")
    import langdetect
    import nltk

    shutil.copytree(found, folder / "tokenizers" / "punkt_tab" / found.name)
    nltk.data.path.insert(0, str(folder))
    langdetect.DetectorFactory.seed = ITEMS_SEED  # it draws at random otherwise, and so would a score


def metric_of(benchmark: BenchmarkConfig, items: int, floor: Any, base: Any, tuned: Any) -> dict[str, Any]:
    """Return the manifest's entry of a benchmark. floor, base, tuned: (n,) scores of the drawn items."""
    task = TASKS[benchmark.task]
    record = {
        "dataset": benchmark.file.name if benchmark.file else task.dataset,
        "measure": task.score,
        "shots": 0,
        "of_items": items,
        "floor": share_interval(floor).as_dict(),
        "informative": share_difference(base, floor).low > 0,
    }
    if benchmark.file:
        record["file_sha256"] = sha256_file(benchmark.file)
    return {
        "name": benchmark.task,
        "split": task.split,
        "unit": "share of items",
        "n": len(base),
        "base": share_interval(base).as_dict(),
        "tuned": share_interval(tuned).as_dict(),
        "difference": share_difference(tuned, base).as_dict(),
        "benchmark": record,
    }


def gate_of(benchmark: BenchmarkConfig, metric: Mapping[str, Any]) -> dict[str, Any]:
    """Return a gate that passes only if the score fell by `max_drop` at most; NaN fails."""
    change, record = metric["difference"]["value"], metric["benchmark"]
    detail = (
        f"{change:+.4f} against the base on {metric['n']} items, "
        f"required is at least {-benchmark.max_drop:+.4f}"
    )
    if not record["informative"]:
        detail += (
            f"; uninformative: the base's {metric['base']['value']:.4f} is not measurably above the "
            f"{record['floor']['value']:.4f} of guessing, so a pass cannot rule out a regression "
            "and a fail may be chance"
        )
    passed = change >= -benchmark.max_drop
    return {"name": f"benchmark {benchmark.task}", "passed": passed, "detail": detail}
