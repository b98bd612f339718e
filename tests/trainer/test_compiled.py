"""The compiled engine against PEFT's own layers: same losses, same gradients, documents kept apart."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from trainer.config import TrainConfig
from trainer.config_lora import LoraConfig
from trainer.data.tokenize import IGNORED
from trainer.engines import compiled, head, plain
from trainer.engines.documents import documents
from trainer.engines.families import unknown_shape
from trainer.engines.head import head_loss
from trainer.errors import ArmError
from trainer.objective.sft import collate

ARM = 8, 3  # rank, seed
SETTINGS = TrainConfig(device="cpu", dtype="float32", tokens_per_step=512, save_every_steps=9)
LENGTHS = (17, 2, 60, 31)
DOCUMENTS = [torch.randint(500, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in LENGTHS]

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
# torch's own: it instantiates autograd functions, and reads .grad of hidden states.
tracing = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute:UserWarning")


SHAPE = {
    "vocab_size": 500, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": True, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# What differs from a Llama, by the name of transformers' configuration. Documents are longer than WINDOW.
WINDOW = 16
KINDS = ["sliding_attention", "sliding_attention", "full_attention"]
LONGROPE: dict[str, Any] = {
    "max_position_embeddings": 256,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10_000.0, "partial_rotary_factor": 0.75,
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    },
}  # fmt: skip
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "mistral with a window": ("MistralConfig", {"sliding_window": WINDOW}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2 with a window": (
        "Qwen2Config", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 24}),
    "smollm3": ("SmolLM3Config", {"no_rope_layer_interval": 2}),
    "granite": (
        "GraniteConfig",
        {
            "embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.1,
            "logits_scaling": 0.25,
        },
    ),
    "phi3": ("Phi3Config", {"sliding_window": None}),
    "phi3 with a window": ("Phi3Config", {"sliding_window": WINDOW}),
    "phi3 with longrope": ("Phi3Config", {**LONGROPE, "original_max_position_embeddings": 64}),
    "phi3 with longrope and long rows": (
        "Phi3Config", {**LONGROPE, "original_max_position_embeddings": 32},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {"head_dim": 24, "query_pre_attn_scalar": 40, "sliding_window": WINDOW, "layer_types": KINDS},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("compiled") / "base"
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(path)
    return path


def other_base(path: Path, family: str) -> Path:
    """Write a random model whose biases and norms of heads do something."""
    torch.manual_seed(0)
    name, more = OTHERS[family]
    config = getattr(transformers, name)(**SHAPE, **more)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(path)
    return path


@pytest.fixture
def row() -> dict[str, Any]:
    """Documents in one row; the first third of each is no target."""
    return packed(DOCUMENTS, LENGTHS)


def packed(documents: Sequence[list[int]], lengths: Sequence[int]) -> dict[str, Any]:
    labels = [[IGNORED] * (len(x) // 3 or 1) + x[len(x) // 3 or 1 :] for x in documents]
    joined = {"input_ids": [*itertools.chain(*documents)], "labels": [*itertools.chain(*labels)]}
    return collate([{**joined, "seq_lengths": lengths}])


def loss_and_gradients(
    engine: Any, base: Path, row: dict[str, Any], lora: LoraConfig, settings: TrainConfig = SETTINGS
) -> tuple[float, list[torch.Tensor]]:
    """With an adapter that is not at its start, where half of all gradients are zero."""
    model = engine.load(base, settings, lora, *ARM, settings.device)
    torch.manual_seed(5)
    adapter = [p for p in model.parameters() if p.requires_grad]
    for parameter in adapter:
        parameter.data.copy_(0.05 * torch.randn(parameter.shape))
    model.train()
    lengths = row["seq_lengths"]
    inputs = {
        name: values if values is lengths else values.to(settings.device) for name, values in row.items()
    }
    loss = engine.compute_loss(model, inputs, (row["labels"] != IGNORED).sum().item())
    loss.backward()
    return loss.item(), [p.grad for p in adapter if p.grad is not None]


@pytest.mark.parametrize("targets", [None, ("q_proj", "v_proj"), ("k_proj", "up_proj", "down_proj")])
@pytest.mark.parametrize("recompute", [False, True])
def test_losses_and_gradients_are_those_of_peft(
    base: Path, row: dict[str, Any], targets: tuple[str, ...] | None, recompute: bool
) -> None:
    lora = LoraConfig(scaling=2.0, **({"target_modules": targets} if targets else {}))
    settings = SETTINGS.model_copy(update={"gradient_checkpointing": recompute})
    loss, gradients = loss_and_gradients(compiled, base, row, lora, settings)
    wanted_loss, wanted = loss_and_gradients(plain, base, row, lora)
    assert loss == pytest.approx(wanted_loss, rel=1e-6)
    assert len(gradients) == len(wanted) == 3 * 2 * len(targets or range(7))
    for got, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_the_root_of_the_rank_scales_its_updates_as_it_does_those_of_peft(
    base: Path, row: dict[str, Any]
) -> None:
    every = {"target_modules": "all-linear"}
    by_root, by_rank = (LoraConfig(alpha=8, rslora=root, **every) for root in (True, False))
    loss, gradients = loss_and_gradients(compiled, base, row, by_root)
    wanted_loss, wanted = loss_and_gradients(plain, base, row, by_root)
    assert loss == pytest.approx(wanted_loss, rel=1e-6) and len(gradients) == len(wanted) == 3 * 2 * 7
    for got, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    other = loss_and_gradients(compiled, base, row, by_rank)[1]
    assert max(g.abs().max() for g in gradients) > 2 * max(g.abs().max() for g in other)  # √8 times


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_have_the_losses_and_gradients_of_peft(
    tmp_path: Path, row: dict[str, Any], family: str
) -> None:
    base, lora = other_base(tmp_path / "base", family), LoraConfig(scaling=2.0)
    assert unknown_shape(AutoConfig.from_pretrained(base)) is None
    loss, gradients = loss_and_gradients(compiled, base, row, lora)
    wanted_loss, wanted = loss_and_gradients(plain, base, row, lora)
    assert loss == pytest.approx(wanted_loss, rel=1e-6)
    for got, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "more", "reason"),
    [
        ("LlamaConfig", {"attention_bias": True}, "knows llama with attention_bias False"),
        ("LlamaConfig", {"hidden_act": "gelu"}, "knows llama with hidden_act silu, and the base has gelu"),
        ("GraniteConfig", {"attention_dropout": 0.1}, "attention_dropout 0.0, and the base has 0.1"),
        ("Phi3Config", {"resid_pdrop": 0.1}, "knows phi3 with resid_pdrop 0.0, and the base has 0.1"),
        (
            "Gemma3TextConfig",
            {"final_logit_softcapping": 30.0},
            "knows gemma3_text with final_logit_softcapping None, and the base has 30.0",
        ),
        ("Gemma3TextConfig", {"hidden_activation": "gelu"}, "hidden_activation gelu_pytorch_tanh, and"),
        ("Gemma2Config", {}, "gemma3_text, and the base is gemma2"),
    ],
)
def test_a_shape_that_it_does_not_compute_is_refused(family: str, more: dict[str, Any], reason: str) -> None:
    found = unknown_shape(getattr(transformers, family)(**{**SHAPE, **more}))
    assert found is not None and reason in found


@tracing
@pytest.mark.parametrize(
    ("family", "near"),
    [("llama", 0.98), ("phi3", 0.98), ("granite", 0.98), ("gemma3", 0.96)],  # four norms a layer round more
)
def test_fp8_is_near_and_still_fp8(
    tmp_path: Path, base: Path, row: dict[str, Any], family: str, near: float
) -> None:
    base = base if family == "llama" else other_base(tmp_path / "base", family)
    device, dtype = ("cuda", "bfloat16") if torch.cuda.is_available() else ("cpu", "float32")
    settings = SETTINGS.model_copy(update={"quantization": "fp8", "device": device, "dtype": dtype})
    loss, gradients = loss_and_gradients(compiled, base, row, LoraConfig(scaling=2.0), settings)
    wanted_loss, wanted = loss_and_gradients(plain, base, row, LoraConfig(scaling=2.0))
    assert loss == pytest.approx(wanted_loss, rel=1e-2)
    assert loss != pytest.approx(wanted_loss, rel=1e-6)
    for got, want in zip(gradients, wanted, strict=True):
        assert functional.cosine_similarity(got.cpu().flatten(), want.flatten(), 0) > near


@needs_gpu
@tracing
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_on_a_gpu_in_bfloat16(base: Path, row: dict[str, Any], recompute: bool) -> None:
    settings = SETTINGS.model_copy(
        update={"device": "cuda", "dtype": "bfloat16", "gradient_checkpointing": recompute}
    )
    loss, gradients = loss_and_gradients(compiled, base, row, LoraConfig(scaling=2.0), settings)
    wanted_loss, wanted = loss_and_gradients(plain, base, row, LoraConfig(scaling=2.0))
    assert loss == pytest.approx(wanted_loss, rel=1e-3)
    for got, want in zip(gradients, wanted, strict=True):
        assert functional.cosine_similarity(got.cpu().flatten(), want.flatten(), 0) > 0.99


@tracing
@pytest.mark.parametrize(("family", "graphs"), [("gemma3", 2), ("granite", 1), ("phi3 with a window", 1)])
def test_a_layer_is_traced_whole_and_once_for_each_window(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, family: str, graphs: int
) -> None:
    """As a GPU compiles it, up to the attention, whose kernel is not on a CPU."""

    def attend(query: Any, key: Any, value: Any, *more: Any) -> Any:
        return query + (key.mean(1) + value.mean(1))[:, None] / (more[-1] or 1)  # the window, as a number

    monkeypatch.setattr(compiled, "attend", attend)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = compiled.load(
        other_base(tmp_path / "base", family), SETTINGS, LoraConfig(scaling=2.0), *ARM, "cpu"
    )
    row = packed([DOCUMENTS[2]], [LENGTHS[2]])
    loss = compiled.compute_loss(model, dict(row), 1).item()
    model.decoder._run = torch.compile(
        compiled.decoder_layer, dynamic=False, fullgraph=True, backend="aot_eager"
    )
    traced = compiled.compute_loss(model, dict(row), 1)
    traced.backward()
    assert traced.item() == pytest.approx(loss, rel=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


@needs_gpu
@tracing
@pytest.mark.parametrize("family", OTHERS)
def test_other_families_compiled_on_a_gpu_in_bfloat16(
    tmp_path: Path, row: dict[str, Any], family: str
) -> None:
    base, lora = other_base(tmp_path / "base", family), LoraConfig(scaling=2.0)
    settings = SETTINGS.model_copy(update={"device": "cuda", "dtype": "bfloat16"})
    loss, gradients = loss_and_gradients(compiled, base, row, lora, settings)
    wanted_loss, wanted = loss_and_gradients(plain, base, row, lora)
    assert loss == pytest.approx(wanted_loss, rel=1e-3)
    for got, want in zip(gradients, wanted, strict=True):
        assert functional.cosine_similarity(got.cpu().flatten(), want.flatten(), 0) > 0.99


def test_documents_do_not_see_each_other(base: Path, row: dict[str, Any]) -> None:
    model = compiled.load(base, SETTINGS, LoraConfig(scaling=2.0), *ARM, "cpu")
    together = compiled.compute_loss(model, dict(row), 1).item()
    alone = [compiled.compute_loss(model, packed([x], [len(x)]), 1).item() for x in DOCUMENTS]
    assert together == pytest.approx(sum(alone), rel=1e-6)
    joined = {**row, "seq_lengths": [sum(LENGTHS)]}
    assert compiled.compute_loss(model, joined, 1).item() != pytest.approx(together, rel=1e-6)


@pytest.mark.parametrize("family", ["phi3 with longrope", "gemma3"])
def test_what_fills_a_row_changes_nothing(tmp_path: Path, row: dict[str, Any], family: str) -> None:
    """As on a GPU, where every row is filled; longrope's frequencies depend on the largest position."""
    model = compiled.load(
        other_base(tmp_path / "base", family), SETTINGS, LoraConfig(scaling=2.0), *ARM, "cpu"
    )
    loss = compiled.compute_loss(model, dict(row), 1).item()
    model.decoder._length = SETTINGS.row_tokens
    assert compiled.compute_loss(model, dict(row), 1).item() == pytest.approx(loss, rel=1e-6)


def test_a_row_is_filled_with_a_document_of_its_own() -> None:
    row = documents([3, 2], 9, torch.device("cpu"))
    assert row.positions.tolist() == [0, 1, 2, 0, 1, 0, 0, 0, 0]
    assert row.borders[:5].tolist() == [0, 3, 5, 9, 9] and set(row.borders[4:].tolist()) == {9}


def test_the_head_in_chunks_gives_loss_and_gradient_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK", 7)
    torch.manual_seed(0)
    weight, targets = torch.randn(50, 12), torch.randint(50, (24,))
    whole, chunked = (torch.randn(24, 12, generator=torch.Generator().manual_seed(2)) for _ in range(2))
    wanted = functional.cross_entropy(whole.requires_grad_() @ weight.t(), targets, reduction="sum")
    (wanted / 3).backward()
    loss = head_loss(chunked.requires_grad_(), weight, targets)
    (loss / 3).backward()
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(chunked.grad, whole.grad)


def test_validation_and_saving_see_the_same_weights(base: Path, row: dict[str, Any], tmp_path: Path) -> None:
    before = LlamaForCausalLM.from_pretrained(base).state_dict()
    model = compiled.load(base, SETTINGS, LoraConfig(scaling=2.0), *ARM, "cpu")
    compiled.compute_loss(model, dict(row), 1).backward()
    with model.disable_adapter(), torch.no_grad():
        logits = model(row["input_ids"][:, : LENGTHS[0]]).logits
    plain_model = LlamaForCausalLM.from_pretrained(base)
    with torch.no_grad():
        torch.testing.assert_close(logits, plain_model(row["input_ids"][:, : LENGTHS[0]]).logits)
    model.merge_and_unload()
    assert model.get_base_model().state_dict().keys() == before.keys()


@pytest.mark.parametrize(
    ("settings", "lora", "reason"),
    [
        ({"quantization": "4bit"}, {}, "has no 4bit base"),
        ({}, {"dropout": 0.1}, "has no lora.dropout"),
        ({}, {"target_modules": ("q_proj", "embed_tokens")}, "has no adapters on embed_tokens"),
    ],
)
def test_what_it_cannot_do_is_refused_with_the_engine_that_can(
    base: Path, settings: dict[str, Any], lora: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ArmError, match=rf"{reason}; set train\.engine to plain"):
        compiled.load(
            base, SETTINGS.model_copy(update=settings), LoraConfig(scaling=2.0, **lora), *ARM, "cpu"
        )
