"""`--config auto`: the profile that is chosen for a machine, and why. No GPU and no network is used."""

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support import ROOT
from trainer import preflight
from trainer.auto_profile import GPU_MEMORY_GIB, choose
from trainer.cli import main
from trainer.config import BaseModelConfig
from trainer.config_data import CONFIGS
from trainer.engines import compiled  # noqa: F401  it must be imported before torch is said to see a GPU

Machine = Callable[..., None]
GATED = "access to the gated weights of {}: accept the licence"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Make torch see a GPU, or none, and the Hub give the bases and data that are not refused."""

    def make(
        memory_gib: float | None, bfloat16: bool = True, packages: bool = True, refused: str = "nothing"
    ) -> None:
        def base(config: BaseModelConfig) -> str | None:
            return GATED.format(config.id) if re.search(refused, config.id) else None

        def find_spec(name: str, package: str | None = None) -> object:
            if name in ("unsloth", "bitsandbytes"):
                return SimpleNamespace() if packages else None
            return installed(name, package)

        installed = importlib.util.find_spec
        properties = SimpleNamespace(name="NVIDIA X", total_memory=int((memory_gib or 0) * 2**30))
        monkeypatch.setattr("torch.cuda.is_available", lambda: memory_gib is not None)
        monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: properties)
        monkeypatch.setattr("torch.cuda.get_device_name", lambda: properties.name)
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: bfloat16)
        monkeypatch.setattr("importlib.util.find_spec", find_spec)
        monkeypatch.setattr(preflight, "_base", base)
        monkeypatch.setattr("trainer.data.hub.check", lambda name: None)

    return make


@pytest.mark.parametrize(
    ("memory_gib", "bfloat16", "profile"),
    [
        (None, True, "quickstart"),
        (7.8, True, "quickstart"),
        (14.7, False, "t4-qlora"),
        (15.8, False, "t4-qlora"),
        (15.7, True, "llama-3.2-1b"),
        (22.5, True, "llama-3.2-1b"),
        (31.4, True, "llama-3.2-1b"),
        (31.8, True, "llama-3.2-3b"),
        (139.8, True, "llama-3.2-3b"),
    ],
)
def test_the_largest_profile_that_the_gpu_can_train_is_chosen(
    machine: Machine, tmp_path: Path, memory_gib: float | None, bfloat16: bool, profile: str
) -> None:
    machine(memory_gib, bfloat16)
    assert choose([], tmp_path)[0] == profile


def test_one_line_says_why_and_why_none_of_the_larger(machine: Machine, tmp_path: Path) -> None:
    machine(31.8)
    assert choose([], tmp_path)[1] == (
        "profile llama-3.2-3b: it needs 32 GiB of GPU memory, and NVIDIA X has 32"
    )
    machine(22.4)
    assert choose([], tmp_path)[1] == (
        "profile llama-3.2-1b: it needs 16 GiB of GPU memory, and NVIDIA X has 22; not llama-3.2-3b: it "
        "needs 32 GiB"
    )
    machine(None)
    assert choose([], tmp_path)[1] == (
        "profile quickstart: it needs no GPU, and torch sees none on this machine"
    )


def test_a_gpu_without_bfloat16_is_named(machine: Machine, tmp_path: Path) -> None:
    machine(32, bfloat16=False)
    assert choose([], tmp_path)[1] == (
        "profile t4-qlora: it needs 15 GiB of GPU memory, and NVIDIA X has 32; not llama-3.2-3b and "
        "llama-3.2-1b: bfloat16: NVIDIA X does not support it; set train.dtype=float16"
    )


def test_a_base_that_the_hub_refuses_leaves_the_next_profile(machine: Machine, tmp_path: Path) -> None:
    machine(80, refused="3B")
    chosen, line = choose([], tmp_path)
    assert chosen == "llama-3.2-1b"
    assert line.endswith(f"not llama-3.2-3b: {GATED.format('meta-llama/Llama-3.2-3B-Instruct')}")
    machine(80, refused="meta-llama")
    chosen, line = choose([], tmp_path)
    assert chosen == "quickstart" and line.count("gated") == 2
    assert line.startswith("profile quickstart: it needs no GPU; not llama-3.2-3b and t4-qlora: ")


def test_a_package_that_is_not_installed_is_named(machine: Machine, tmp_path: Path) -> None:
    machine(15, bfloat16=False, packages=False)
    chosen, line = choose([], tmp_path)
    assert chosen == "quickstart" and "t4-qlora: the package unsloth" in line


def test_a_profile_that_has_made_a_model_here_needs_no_network(machine: Machine, tmp_path: Path) -> None:
    machine(80, refused="meta-llama")
    (tmp_path / "models" / "Llama-3.2-1B-FineTome-0123abcd").mkdir(parents=True)
    assert choose([], tmp_path)[0] == "llama-3.2-1b"


def test_overrides_hold_for_every_profile(machine: Machine, tmp_path: Path) -> None:
    machine(80, bfloat16=False)
    assert choose(["train.dtype=float16"], tmp_path)[0] == "llama-3.2-3b"


def test_the_command_takes_auto_and_keeps_its_output_a_configuration(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(16)
    assert main(["run", "--config", "auto", "--artifacts", str(tmp_path), "--dry-run"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["name"] == "Llama-3.2-1B-FineTome"
    assert said.err.startswith("auto: profile llama-3.2-1b: ") and said.err.count("\n") == 1


def test_every_shipped_profile_has_its_place_and_the_readme_states_its_memory() -> None:
    readme = (ROOT / "README.md").read_text()
    stated = {
        name: int(memory) for name, memory in re.findall(r"\| `([\w.-]+)` \|.*NVIDIA GPU, (\d+) GiB", readme)
    }
    assert stated == GPU_MEMORY_GIB
    assert {file.stem for file in CONFIGS.glob("*.yaml")} == {*GPU_MEMORY_GIB, "quickstart"}
    assert list(GPU_MEMORY_GIB.values()) == sorted(GPU_MEMORY_GIB.values(), reverse=True)
