"""Rows and random models for the trainer's tests."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support import ROOT
from trainer.data.conversation import Conversation, Message
from trainer.data.tokenize import ChatTokenizer, TokenRow

PAUSING = ROOT / "tests" / "support" / "pausing_trainer.py"


def rows(count: int) -> list[dict[str, Any]]:
    """Rows whose answer can be copied from the prompt, each its own group."""
    return [
        {
            "conversations": [
                {"from": "human", "value": f"Say word{i}."},
                {"from": "gpt", "value": f"word{i}"},
            ],
            "source": "made",
        }
        for i in range(count)
    ]


def row_of(tokenizer: Any, *turns: tuple[str, str]) -> TokenRow:
    """A conversation of questions and answers as a row, with labels on every answer."""
    messages = [
        message
        for question, answer in turns
        for message in (Message("user", question), Message("assistant", answer))
    ]
    return ChatTokenizer(tokenizer).row(Conversation(tuple(messages), "made"))


def model_of(tokenizer: Any, **more: Any) -> LlamaForCausalLM:
    """A random bfloat16 Llama for this tokenizer, with two embedding rows that no token has."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 2, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        tie_word_embeddings=True, initializer_range=0.2, **more,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id]
    return model.to(torch.bfloat16).eval()
