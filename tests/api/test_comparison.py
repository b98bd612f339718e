"""Comparison models: only a base and adapters of this artifact, and only plain LoRA, are loaded."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from api.engine.artifact import read_artifact
from api.engine.comparison import ComparisonModels, _weights_sha256, read_comparison_models
from api.engine.engine import Engine
from api.errors import AdapterError, SettingsError
from api.settings import Settings, read_settings
from tests.support.api import MODEL, FakeEngine, House, ask

URL = "/v1/chat/completions"
LAYER = "model.layers.0.self_attn.q_proj"
MakeHouse = Callable[..., House]
Damage = Callable[[Path], None]


def tensors(rank: int, **more: Any) -> dict[str, Any]:
    """LoRA weights for a layer of 6 inputs and 4 outputs."""
    pair = {"A": np.zeros((rank, 6), np.float32), "B": np.zeros((4, rank), np.float32)}
    return {f"base_model.model.{LAYER}.lora_{half}.weight": tensor for half, tensor in pair.items()} | more


@pytest.fixture
def base(artifacts: Path) -> Path:
    """The base of the artifact."""
    directory = artifacts / "base"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    weights = {f"{LAYER}.weight": np.zeros((4, 6), np.float32), "norm.weight": np.zeros(6, np.float32)}
    save_file(weights, directory / "model.safetensors")
    manifest = artifacts / "models/tiny-r8/manifest.json"
    found = json.loads(manifest.read_text())
    found["base_model"]["weights_sha256"] = _weights_sha256(directory)
    manifest.write_text(json.dumps(found))
    return directory


@pytest.fixture
def adapter(base: Path) -> Path:
    """A good one, of rank 2."""
    directory = base.parent / "adapter"
    directory.mkdir()
    plain = {"peft_type": "LORA", "r": 2, "lora_alpha": 4.0, "target_modules": ["q_proj"], "bias": "none",
             "modules_to_save": None, "use_dora": False, "init_lora_weights": True, "lora_dropout": 0.1,
             "base_model_name_or_path": "/elsewhere", "peft_version": "0.21.2"}  # fmt: skip
    (directory / "adapter_config.json").write_text(json.dumps(plain))
    (directory / "base.json").write_text(json.dumps({"weights_sha256": _weights_sha256(base)}))
    save_file(tensors(2), directory / "adapter_model.safetensors")
    return directory


def read(base: Path, adapter: Path, name: str = "r2") -> ComparisonModels:
    found = read_comparison_models(base, {name: adapter})
    assert found
    return found


def test_a_good_base_and_adapter_may_be_served(artifacts: Path, base: Path, adapter: Path) -> None:
    comparison = read(base, adapter)
    comparison.verify(read_artifact(artifacts))
    assert comparison.names == ["base", "r2"]
    assert (comparison.adapters[0].rank, comparison.adapters[0].directory) == (2, adapter)
    assert read_comparison_models(None, {}) is None


def configure(**fields: Any) -> Damage:
    def damage(adapter: Path) -> None:
        file = adapter / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return damage


def write(name: str, content: bytes) -> Damage:
    def damage(adapter: Path) -> None:
        (adapter / name).write_bytes(content)

    return damage


def reweigh(weights: dict[str, Any]) -> Damage:
    return lambda adapter: save_file(weights, adapter / "adapter_model.safetensors")


def cut(adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def link_out(adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    weights.rename(adapter.parent / "elsewhere.safetensors")
    weights.symlink_to("../elsewhere.safetensors")


def remove(name: str) -> Damage:
    return lambda adapter: (adapter / name).unlink()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (remove("adapter_config.json"), "adapter_config.json is missing"),
        (remove("adapter_model.safetensors"), "adapter_model.safetensors is missing"),
        (remove("base.json"), "base.json is missing"),
        (write("base.json", b"[]"), "base.json holds no JSON object"),
        (write("base.json", b"{}"), "base.json states no weights_sha256"),
        (write("adapter_config.json", b"\xff"), "adapter_config.json cannot be read"),
        (write("adapter_config.json", b"[" * 100_000), "adapter_config.json cannot be read"),
        (write("adapter_model.bin", b"cos\nsystem\n"), "adapter_model.bin is a pickle"),
        (write("training_args.bin", b""), "training_args.bin is a pickle"),
        (configure(peft_type="IA3"), "peft_type is 'IA3'"),
        (configure(r=257), "r is 257, expected a rank from 1 to 256"),
        (configure(r=True), "r is True"),
        (configure(r=3), "has shape (2, 6), expected (3, 6)"),
        (configure(lora_alpha=float("inf")), "lora_alpha is inf"),
        (configure(modules_to_save=["lm_head"]), "modules_to_save is \"['lm_head']\""),
        (configure(use_dora=True), "use_dora is 'True'"),
        (configure(bias="all"), "bias is 'all'"),
        (configure(rank_pattern={"q_proj": 4}), "rank_pattern is"),
        (configure(init_lora_weights="pissa"), "init_lora_weights is 'pissa'"),
        (configure(of_a_later_version=1), "of_a_later_version is '1'"),
        (cut, "adapter_model.safetensors is no whole safetensors file"),
        (write("adapter_model.safetensors", b"\xff" * 64), "is no whole safetensors file"),
        (link_out, "adapter_model.safetensors is a symbolic link"),
        (reweigh({}), "holds no tensor"),
        (reweigh(tensors(2, **{"lm_head.weight": np.zeros((4, 6), np.float32)})), "'lm_head.weight' belongs"),
        (
            reweigh({name.replace("q_proj", "x"): t for name, t in tensors(2).items()}),
            "belongs to no layer of the base",
        ),
        (reweigh(dict(list(tensors(2).items())[:1])), "lora_B.weight has shape None, expected (4, 2)"),
        (reweigh({name: t.astype(np.int8) for name, t in tensors(2).items()}), "is I8, expected F32"),
    ],
)
def test_an_adapter_that_is_not_plain_lora_for_this_base_is_refused_in_one_line(
    base: Path, adapter: Path, damage: Damage, says: str
) -> None:
    damage(adapter)
    with pytest.raises(AdapterError) as refusal:
        read(base, adapter)
    assert says in str(refusal.value)
    assert str(adapter) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_does_not_belong_to_the_artifact_is_refused(artifacts: Path, base: Path, adapter: Path) -> None:
    artifact = read_artifact(artifacts)
    with pytest.raises(AdapterError, match=f"'{MODEL}' is the name of the merged model"):
        read(base, adapter, MODEL).verify(artifact)
    with pytest.raises(AdapterError, match="'base' is reserved for the base itself"):
        read(base, adapter, "base")
    (adapter / "base.json").write_text(json.dumps({"weights_sha256": "0" * 64}))
    with pytest.raises(AdapterError, match="belongs to another base"):
        read(base, adapter).verify(artifact)
    save_file({f"{LAYER}.weight": np.ones((4, 6), np.float32)}, base / "model.safetensors")
    comparison = read(base, adapter)
    with pytest.raises(AdapterError, match=r"API_BASE_DIR .*was made from"):
        Engine(Settings(artifacts_dir=artifacts), artifact, comparison).start()


def test_a_base_that_is_no_model_is_refused(base: Path) -> None:
    (base / "config.json").unlink()
    with pytest.raises(AdapterError, match="holds no model"):
        read_comparison_models(base, {})


def test_adapters_are_named_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_BASE_DIR", "/b")
    monkeypatch.setenv("API_ADAPTERS", "r4=/runs/a=b, r8=x,")
    assert read_settings().adapters == {"r4": Path("/runs/a=b"), "r8": Path("x")}


@pytest.mark.parametrize(
    "value", ["r4", "r4=", "=x", "a=x,a=y", "../r4=x", "a b=x", ",".join(f"a{i}=x" for i in range(17))]
)
def test_adapters_that_are_named_wrongly_are_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("API_BASE_DIR", "/b")
    monkeypatch.setenv("API_ADAPTERS", value)
    with pytest.raises(SettingsError, match="API_ADAPTERS"):
        read_settings()


def test_adapters_without_their_base_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_ADAPTERS", "r4=x")
    with pytest.raises(SettingsError, match="API_ADAPTERS needs API_BASE_DIR"):
        read_settings()


def test_check_names_the_comparison_models_and_what_is_wrong_with_them(
    artifacts: Path, base: Path, adapter: Path
) -> None:
    environment = {
        "ARTIFACTS_DIR": str(artifacts),
        "API_BASE_DIR": str(base),
        "API_ADAPTERS": f"r2={adapter}",
    }

    def check() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "api", "check"]
        root = Path(__file__).parents[2]
        return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=120)

    good = check()
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.endswith("ok: base and r2 can be served for comparison\n")
    cut(adapter)
    bad = check()
    assert (bad.returncode, bad.stdout, bad.stderr.count("\n")) == (1, "", 1)
    assert "no whole safetensors file" in bad.stderr


@pytest.mark.anyio
async def test_each_is_listed_and_answers_under_its_own_name(
    make_house: MakeHouse, base: Path, adapter: Path
) -> None:
    house = make_house(FakeEngine(), base_dir=base, adapters={"r2": adapter})
    await house.load()
    async with house.client() as client:
        listed = (await client.get("/v1/models")).json()["data"]
        found = [(model["id"], model["root"], model["parent"]) for model in listed]
        assert found == [(MODEL, "tiny-r8", None), ("base", "b", None), ("r2", "r2", "base")]
        assert (await client.get("/v1/models/r2")).json() == listed[2]
        for name in (MODEL, "base", "r2"):
            answer = await client.post(URL, json=ask(model=name))
            assert (answer.status_code, answer.json()["model"]) == (200, name)
        unknown = await client.post(URL, json=ask(model="r3"))
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
        assert "'tiny-docs', 'base', 'r2'" in unknown.json()["error"]["message"]
        assert (await client.get("/v1/models/r3")).status_code == 404
    assert [call["model"] for call in house.engine.calls] == [MODEL, "base", "r2"]


@pytest.mark.anyio
async def test_ready_only_after_every_name_has_generated_a_token(
    make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed: list[str] = []

    class Probed(FakeEngine):
        async def generate(self, *arguments: Any, model: str = "", **options: Any) -> Any:
            probed.append(model)
            async for delta in super().generate(*arguments, model=model, **options):
                yield delta

    house = make_house(Probed(models=[MODEL, "base", "r2"]))
    await house.load()
    assert probed == [MODEL, "base", "r2"]
