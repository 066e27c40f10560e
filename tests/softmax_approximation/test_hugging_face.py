import copy
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lit_methods.softmax_approximation import hugging_face
from tests.softmax_approximation.models import MODELS, VOCABULARY, approximated, gradients, inputs, make, relative

PADDED = [name for name in MODELS if name != "vit"]
SIDES = pytest.mark.parametrize("left", [False, True], ids=["right", "left"])


def eager_attention_forward(module: Any, query: Tensor, temperature: float, **kwargs: Any) -> None:
    """Stands for a model's own attention with a keyword of its own."""


def _logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    torch.manual_seed(7)
    return model(**batch).logits


@SIDES
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_exact_gradients_are_those_of_eager(name: str, left: bool) -> None:
    model, batch = make(name), inputs(name, left=left)
    expected = _logits(model, batch)
    exact = gradients(model, lambda: _logits(model, batch).square().mean())
    assert expected.std() > 0.05
    with approximated(model, "recompute", record=True) as attachment:
        found = _logits(model, batch)
        grads = gradients(model, lambda: _logits(model, batch).square().mean())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert relative(grads, exact) < 1e-5
    layers = 6 if name == "t5" else 2
    assert [row.route for row in attachment.approximation.coverage.rows.values()] == ["hugging face"] * layers


@pytest.mark.parametrize("name", PADDED)
def test_a_dropped_mask_would_be_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = make(name), inputs(name)
    expected = _logits(model, batch)
    monkeypatch.setattr(hugging_face, "attention_mask", lambda *args, **kwargs: None)
    with approximated(model, "recompute"):
        assert (_logits(model, batch) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", PADDED)
def test_causal_order_left_to_the_kernel_is_kept(name: str) -> None:
    model, batch = make(name), inputs(name)
    batch["attention_mask"] = torch.ones_like(batch["attention_mask"])  # then the mask function gives None
    expected = _logits(model, batch)
    with approximated(model, "log4"):
        torch.testing.assert_close(_logits(model, batch), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("bert", {"attention_probs_dropout_prob": 0.2, "hidden_dropout_prob": 0.2}),
        ("gpt2", {"attn_pdrop": 0.2, "resid_pdrop": 0.2}),
        ("t5", {"dropout_rate": 0.2}),
    ],
)
def test_dropout_is_that_of_eager(name: str, settings: dict[str, float]) -> None:
    model, batch = make(name, **settings), inputs(name)
    expected, after = _logits(model, batch), torch.rand(1)
    exact = gradients(model, lambda: _logits(model, batch).square().mean())
    for record in (False, True):
        with approximated(model, "merged", record=record):
            torch.testing.assert_close(_logits(model, batch), expected, rtol=0, atol=1e-6)
            assert torch.rand(1) == after
            assert relative(gradients(model, lambda: _logits(model, batch).square().mean()), exact) < 1e-5


def test_bias_of_positions_learns() -> None:
    model, batch = make("t5"), inputs("t5")
    table = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    gradients(model, lambda: _logits(model, batch).square().mean())
    exact = table.grad.clone()
    with approximated(model, "merged"):
        gradients(model, lambda: _logits(model, batch).square().mean())
    torch.testing.assert_close(table.grad, exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max()))
    assert exact.abs().max() > 0


@pytest.mark.parametrize("former", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])
def test_modules_left_out_go_on_as_before(name: str, former: str) -> None:
    model, batch = make(name, attn_implementation=former), inputs(name, left=former == "eager")
    expected = _logits(model, batch)
    with approximated(model, "log4", modules=["*.0.*", "*.0"], record=True) as attachment:
        torch.testing.assert_close(_logits(model, batch), expected, rtol=0, atol=1e-5)
    rows = attachment.approximation.coverage.rows
    covered = {name for name, row in rows.items() if row.covered}
    assert covered
    assert all(".0." in f"{name}." for name in covered)


def test_attention_maps_are_those_of_eager() -> None:
    model, batch = make("bert"), inputs("bert")
    expected = model(**batch, output_attentions=True).attentions
    with approximated(model, "log4"):
        found = model(**batch, output_attentions=True).attentions
        assert model(**batch).attentions is None
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_gradient_flows_through_attention_maps() -> None:
    model, batch = make("bert"), inputs("bert")

    def loss() -> Tensor:
        out = model(**batch, output_attentions=True)
        return out.logits.square().mean() + sum(weights.square().mean() for weights in out.attentions)

    exact = gradients(model, loss)
    with approximated(model, "recompute"):
        assert relative(gradients(model, loss), exact) < 1e-5


@pytest.mark.parametrize("former", ["eager", "sdpa"])
def test_the_former_attention_comes_back(former: str) -> None:
    model, batch = make("t5", attn_implementation=former), inputs("t5")
    expected, keys = _logits(model, batch), list(model.state_dict())
    with approximated(model, "log4"):
        assert model.config._attn_implementation == hugging_face.IMPLEMENTATION
        assert list(model.state_dict()) == keys
    assert {module.config._attn_implementation for module in model.modules() if hasattr(module, "config")} == {former}
    assert torch.equal(_logits(model, batch), expected)


def test_modules_of_a_flash_attention_model_that_are_left_out_take_sdpa() -> None:
    model, batch = make("llama"), inputs("llama")
    expected = _logits(model, batch)
    model.config._attn_implementation_internal = "flash_attention_2"  # needs a GPU to run
    with approximated(model, "log4", modules=["*.0"], record=True):
        torch.testing.assert_close(_logits(model, batch), expected, rtol=0, atol=1e-5)
    assert model.config._attn_implementation == "flash_attention_2"


def test_a_copy_made_meanwhile_is_exact() -> None:
    model, batch = make("llama"), inputs("llama")
    exact = gradients(model, lambda: _logits(model, batch).square().mean())
    with approximated(model, "log2"):
        twin = copy.deepcopy(model)
    grads = gradients(twin, lambda: _logits(twin, batch).square().mean())
    assert relative(grads, exact) < 1e-5


def test_a_model_saved_meanwhile_is_plain(tmp_path: Any) -> None:
    model = make("bert")
    with approximated(model, "log4"):
        model.save_pretrained(tmp_path)
    assert hugging_face.IMPLEMENTATION not in (tmp_path / "config.json").read_text()


def test_two_models_keep_their_own_codecs() -> None:
    first, second, batch = make("bert"), make("bert"), inputs("bert")
    exact = gradients(first, lambda: _logits(first, batch).square().mean())
    with approximated(first, "recompute"), approximated(second, "log2"):
        assert relative(gradients(first, lambda: _logits(first, batch).square().mean()), exact) < 1e-5
        assert relative(gradients(second, lambda: _logits(second, batch).square().mean()), exact) > 1e-3


def test_soft_capped_models_take_the_other_route() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = Gemma2Config(vocab_size=VOCABULARY, pad_token_id=0, attn_implementation="eager", **sizes, **heads)
    model, batch = Gemma2ForCausalLM(config), inputs("llama")
    exact = gradients(model, lambda: _logits(model, batch).square().mean())
    with approximated(model, "recompute", record=True) as attachment:
        grads = gradients(model, lambda: _logits(model, batch).square().mean())
    assert all(torch.equal(a, b) for a, b in zip(grads, exact, strict=True))
    assert {row.route for row in attachment.approximation.coverage.rows.values()} == {"saved tensors"}


def test_attention_that_inherits_its_forward_is_covered() -> None:
    model, batch = make("bert"), inputs("bert")
    expected = gradients(model, lambda: _logits(model, batch).square().mean())
    for layer in model.bert.encoder.layer:
        kind = type(layer.attention.self)
        layer.attention.self.__class__ = type("OwnSelfAttention", (kind,), {"__module__": __name__})
    with approximated(model, "recompute", record=True) as attachment:
        found = gradients(model, lambda: _logits(model, batch).square().mean())
    assert relative(found, expected) < 1e-5
    assert [row.route for row in attachment.approximation.coverage.rows.values()] == ["hugging face"] * 2


@pytest.mark.parametrize("keyword", ["softcap", "s_aux", "cache"])
def test_keywords_that_change_the_maths_are_refused(keyword: str) -> None:
    module = make("bert").bert.encoder.layer[0].attention.self
    heads = torch.randn(1, 2, 3, 8)
    with pytest.raises(MisconfigurationException, match=rf"{keyword}=.* changes what attention computes"):
        hugging_face.attention_forward(module, heads, heads, heads, None, **{keyword: 50.0})


def test_keyword_that_only_the_models_own_attention_names_is_refused() -> None:
    module = type("Attention", (torch.nn.Module,), {"forward": lambda self: None})()
    heads = torch.randn(1, 2, 3, 8)
    with pytest.raises(MisconfigurationException, match="temperature=2 to its attention"):
        hugging_face.attention_forward(module, heads, heads, heads, None, temperature=2)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_attention_that_computes_something_else_is_refused(dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.bert import modeling_bert

    plain = modeling_bert.eager_attention_forward

    def sharpened(*args: Any, scaling: float, **kwargs: Any) -> Any:
        return plain(*args, scaling=2 * scaling, **kwargs)

    model, batch = make("bert", attention_probs_dropout_prob=dropout), inputs("bert")
    monkeypatch.setattr(modeling_bert, "eager_attention_forward", sharpened)
    sentence = r"attention of bert\.encoder\.layer\.0\.attention\.self computes something else"
    with approximated(model, "log4", record=True), pytest.raises(MisconfigurationException, match=sentence):
        model(**batch)


def test_a_model_without_the_interface_takes_the_other_route() -> None:
    from transformers import DebertaV2Config, DebertaV2Model

    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.1}
    relative_positions = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 8}
    model = DebertaV2Model(DebertaV2Config(vocab_size=VOCABULARY, **sizes, **off, **relative_positions)).train()
    batch = inputs("bert")
    assert not hugging_face.is_exchangeable(model)

    def loss() -> Tensor:
        return model(**batch).last_hidden_state.square().mean()

    exact = gradients(model, loss)
    with approximated(model, "recompute", record=True) as attachment:
        grads = gradients(model, loss)
    assert all(torch.equal(a, b) for a, b in zip(grads, exact, strict=True))
    rows = attachment.approximation.coverage.rows
    assert {row.route for row in rows.values()} == {"saved tensors"}
    assert sorted(rows) == [f"encoder.layer.{layer}.attention.self" for layer in (0, 1)]
