"""Tiny models with random weights, and the comparison of a model with itself under approximation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_methods.softmax_approximation import Codec, as_codec
from lit_methods.softmax_approximation.approximation import Approximation
from lit_methods.softmax_approximation.attachment import Attachment
from lit_methods.softmax_approximation.coverage import Coverage
from lit_methods.softmax_approximation.saved_tensors import SavedTensors

VOCABULARY, LENGTH = 50, 64
Way = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def approximated(
    model: nn.Module, codec: str | Codec, *, modules: list[str] | None = None, record: bool = False
) -> Iterator[Attachment]:
    """Attaches a codec to a model for the length of a block, which is one step."""
    approximation = Approximation(as_codec(codec), Coverage() if record else None)
    attachment = Attachment(model, approximation, modules, min_keys=1)
    try:
        with attachment.step():
            yield attachment
    finally:
        attachment.remove()


def gradients(model: nn.Module, loss: Callable[[], Tensor]) -> list[Tensor]:
    """Gradients of a loss with respect to the parameters, from a fixed random state."""
    model.zero_grad()
    torch.manual_seed(5)
    loss().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def relative(found: list[Tensor], expected: list[Tensor]) -> float:
    """Norm of the difference of all gradients over the norm of the expected ones."""
    difference = torch.cat([(a - b).flatten() for a, b in zip(found, expected, strict=True)])
    return float(difference.norm() / torch.cat([b.flatten() for b in expected]).norm())


def tokens(length: int = 12, *, left: bool = False) -> dict[str, Tensor]:
    """Three rows of tokens, the second and third padded on one side."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.ones(3, length, dtype=torch.long)
    for row, padding in ((1, length // 3), (2, length // 2)):
        if left:
            mask[row, :padding] = 0
        else:
            mask[row, -padding:] = 0
    return {"input_ids": torch.randint(1, VOCABULARY, (3, length), generator=generator), "attention_mask": mask}


def _bert(**settings: Any) -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=VOCABULARY, max_position_embeddings=512, **(sizes | settings))
    return BertForSequenceClassification(config)


def _gpt2(**settings: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
            **settings,
        )
    )  # fmt: skip


def _llama(**settings: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes, **heads, **settings))


def _mistral(**settings: Any) -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "sliding_window": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return MistralForCausalLM(MistralConfig(vocab_size=VOCABULARY, **sizes, **heads, **settings))


def _t5(**settings: Any) -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, decoder_start_token_id=0, **sizes, **settings))


def _vit(**settings: Any) -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, num_channels=1, **sizes, **settings))


MODELS: dict[str, Callable[..., Any]] = {
    "bert": _bert,
    "gpt2": _gpt2,
    "llama": _llama,
    "mistral": _mistral,
    "t5": _t5,
    "vit": _vit,
}


def make(name: str, **settings: Any) -> Any:
    """A tiny model of that name, the same weights each time; dropout is off unless set."""
    torch.manual_seed(1)
    off = {
        "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        "t5": {"dropout_rate": 0.0},
        "vit": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    }.get(name, {})
    model = MODELS[name](**{"attn_implementation": "eager", **off, **settings}).train()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2 if name == "t5" else 5).add_(
                0.02 * torch.randn_like(p)
            )  # fresh weights attend almost evenly, which would hide much
    return model


def inputs(name: str, *, left: bool = False) -> dict[str, Tensor]:
    """A batch for that model, with padding where it takes any."""
    if name == "vit":
        return {"pixel_values": torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(3))}
    batch = tokens(left=left)
    if name == "t5":
        batch["decoder_input_ids"] = batch["input_ids"][:, :9].flip(1)
    return batch


def matmul(scores: Tensor, value: Tensor) -> Tensor:
    return torch.softmax(scores, -1) @ value


def dropped(scores: Tensor, value: Tensor) -> Tensor:
    return F.dropout(torch.softmax(scores, -1), 0.2) @ value


def scores_and_value(length: int = LENGTH) -> tuple[Tensor, Tensor]:
    """What a way of attention takes: scores ``(2, 3, length, length)`` and values."""
    generator = torch.Generator().manual_seed(1)
    scores = 2 * torch.randn(2, 3, length, length, generator=generator)
    value = torch.randn(2, 3, length, 8, generator=generator) + 1
    return scores.requires_grad_(), value.requires_grad_()


def hooks_of(codec: str | Codec, **kwargs: Any) -> SavedTensors:
    """Saved-tensor hooks by a codec, with a report."""
    return SavedTensors(Approximation(as_codec(codec), Coverage()), **kwargs)


def grads_of(way: Way, scores: Tensor, value: Tensor, hooks: SavedTensors | None = None) -> list[Tensor]:
    """Gradients by scores and values, with the same dropout each time."""
    torch.manual_seed(5)
    if hooks is None:
        output = way(scores * 1, value)
    else:
        with hooks:
            output = way(scores * 1, value)
    weights = torch.linspace(-1, 1, output.numel()).view(output.shape)
    return list(torch.autograd.grad((output * weights).sum(), (scores, value)))
