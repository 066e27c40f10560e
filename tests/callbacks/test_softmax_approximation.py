"""The callback: what it refuses, reports, logs, leaves behind, and that training sees the gradients it promises."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_methods import Classifier, SoftmaxApproximation
from lit_methods.softmax_approximation import Logarithmic, TopK
from lit_methods.softmax_approximation.meters import SavedBytes
from tests.battery.state import plain, traces
from tests.battery.trainers import BackwardLosses, Recorder, toy_trainer
from tests.entries.softmax_approximation import toy_attention
from tests.entries.toys import CLASSES, EXAMPLES, Parts, ToyData, toy_network, toy_tensors
from tests.softmax_approximation.models import VOCABULARY, make

LENGTH = 64


class OwnAttention(nn.Module):
    """Attention that no library offers: scores of its own, a softmax, a product."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(1, 8), nn.Linear(8, CLASSES)
        self.mix = nn.Linear(8, 8)

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.embed(inputs.unsqueeze(-1))
        scores = torch.tanh(x.unsqueeze(2) + self.mix(x).unsqueeze(1)).sum(-1)  # additive
        return self.head((torch.softmax(scores, -1) @ x).mean(1))


class Bert(nn.Module):
    """Tokens in floats, as the toy data has them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.bert = make("bert", **settings)
        self.bert.classifier = nn.Linear(16, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = (inputs.abs() * 10).long() % VOCABULARY
        return self.bert(
            input_ids=tokens, attention_mask=(tokens > 2).long() | (torch.arange(tokens.shape[1]) == 0)
        ).logits


def _data(length: int = LENGTH) -> ToyData:
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(EXAMPLES, length, generator=generator)
    return ToyData(inputs, (inputs.mean(1) > 0).long())


def _network(make_network: Any) -> nn.Module:
    torch.manual_seed(2)
    return make_network()


def _fit(
    network: nn.Module, folder: Path, *callbacks: Any, data: ToyData | None = None, **trainer: Any
) -> tuple[Trainer, Classifier, list[float]]:
    module, losses = Classifier(network, CLASSES), BackwardLosses()
    runner = toy_trainer(Parts(module, list(callbacks), _data()), folder, losses, **({"max_epochs": 1} | trainer))
    runner.fit(module, datamodule=data or _data())
    return runner, module, losses.values


NETWORKS = [OwnAttention, Bert, toy_attention]
each_network = pytest.mark.parametrize("make_network", NETWORKS, ids=lambda network: network.__name__)


@each_network
@pytest.mark.parametrize("trainer", [{}, {"accumulate_grad_batches": 2}], ids=["plain", "accumulating"])
def test_exact_codec_trains_as_without_the_callback(make_network: Any, trainer: dict[str, Any], tmp_path: Path) -> None:
    weights, losses = [], []
    for callbacks in ([], [SoftmaxApproximation("recompute")]):
        _, module, values = _fit(_network(make_network), tmp_path, *callbacks, **trainer)
        weights.append(module.state_dict())
        losses.append(values)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-4)
    assert list(weights[1]) == list(weights[0])


@each_network
def test_first_loss_is_exact_and_lossy_training_differs(make_network: Any, tmp_path: Path) -> None:
    plain_losses = _fit(_network(make_network), tmp_path)[2]
    losses = _fit(_network(make_network), tmp_path, SoftmaxApproximation(TopK(0.05, tail="uniform")))[2]
    assert losses[0] == pytest.approx(plain_losses[0], abs=1e-6)
    assert losses[1:] != plain_losses[1:]


def test_table_comes_before_the_first_step_and_figures_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Watch(SoftmaxApproximation):
        def on_before_optimizer_step(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 0:
                assert "self_attn" in caplog.text

    callback, recorder = Watch("log4"), Recorder()
    with caplog.at_level(logging.INFO):
        _fit(_network(toy_attention), tmp_path, callback, logger=recorder)
    assert "network.layer.self_attn  multihead  log4" in caplog.text
    assert "the whole model keeps" in caplog.text
    logged = {key: value for _, row in recorder.rows for key, value in row.items()}
    coverage = callback.coverage
    assert logged["memory/softmax_before_mib"] == pytest.approx(coverage.before / 2**20)
    assert logged["memory/softmax_after_mib"] == pytest.approx(coverage.after / 2**20)
    assert logged["memory/saved_after_mib"] == pytest.approx(coverage.total / 2**20)
    assert (tmp_path / "softmax_coverage.csv").is_file() or not recorder.save_dir


def test_report_is_what_the_step_really_keeps(tmp_path: Path) -> None:
    class Kept(SoftmaxApproximation):
        def on_train_batch_start(
            self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
        ) -> None:
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            if batch_idx == 1:
                self.outer = SavedBytes()
                self.outer.__enter__()
                self._attachment.begin()

        def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
            super().on_before_backward(trainer, pl_module, loss)
            if hasattr(self, "outer") and not hasattr(self, "second"):
                self.second = self.outer.nbytes(pl_module.parameters())
                self._attachment.end()
                self.outer.__exit__()

    for make_network in NETWORKS:
        callback = Kept("log4")
        _fit(_network(make_network), tmp_path, callback, limit_train_batches=2)
        assert callback.coverage.total == pytest.approx(callback.second, rel=0.01), make_network
        if make_network is not toy_attention:  # whose fused kernel kept nothing before
            assert callback.coverage.after < callback.coverage.before / 6


def test_error_is_logged_and_a_better_codec_takes_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    callback = SoftmaxApproximation("log2", error_every_n_steps=2, max_error=1e-6)
    with caplog.at_level(logging.INFO):
        _fit(_network(toy_attention), tmp_path, callback, logger=recorder, max_epochs=2)
    errors = [row["softmax/relative_error"] for _, row in recorder.rows if "softmax/relative_error" in row]
    assert len(errors) == 6
    assert errors[:4] == sorted(errors[:4], reverse=True)
    assert errors[3] < 1e-6 < errors[2]
    assert [f"{name} takes over" in caplog.text for name in ("log4", "log8", "recompute")] == [True] * 3
    assert callback.state_dict()["backed_off"] == "recompute"


def test_measuring_leaves_the_training_as_it_is(tmp_path: Path) -> None:
    for make_network in (toy_attention, Bert):
        weights = []
        for every in (None, 1):
            callback = SoftmaxApproximation("log2", error_every_n_steps=every)
            _, module, _ = _fit(_network(make_network), tmp_path, callback)
            weights.append(plain(module.state_dict()))
        assert weights[0] == weights[1]


def test_measured_error_is_that_of_the_layer_s_gradient(tmp_path: Path) -> None:
    recorder = Recorder()
    network = _network(toy_attention)
    _fit(network, tmp_path, SoftmaxApproximation("log4", error_every_n_steps=1), logger=recorder, limit_train_batches=1)
    logged = next(row for _, row in recorder.rows if "softmax/relative_error" in row)
    network = _network(toy_attention)
    inputs, labels = (tensor[:8] for tensor in _data().dataset.tensors)
    attention, found = network.layer.self_attn, {}

    def attend(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> tuple[Tensor, None]:
        from lit_methods.softmax_approximation import softmax_attention

        packed = nn.functional.linear(query, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
        heads = [t.unflatten(-1, (2, 4)).transpose(1, 2).detach().requires_grad_() for t in packed]
        output = torch.softmax(heads[0] @ heads[1].mT / 2, -1) @ heads[2]
        output.register_hook(lambda grad: found.update(grad=grad, heads=heads, approximate=softmax_attention))
        return attention.out_proj(output.transpose(1, 2).flatten(2)), None

    attention.forward = attend
    nn.functional.cross_entropy(network(inputs), labels).backward()
    gradients = []
    for codec in ("merged", "log4"):
        output, _ = found["approximate"](*found["heads"], codec=codec)
        grads = torch.autograd.grad(output, found["heads"], found["grad"])
        gradients.append(torch.cat([g.flatten() for g in grads]))
    exact, approximate = gradients
    assert logged["softmax/relative_error"] == pytest.approx(
        float((approximate - exact).norm() / exact.norm()), rel=1e-3
    )
    cosine = float(nn.functional.cosine_similarity(exact, approximate, dim=0))
    assert logged["softmax/cosine"] == pytest.approx(cosine, abs=1e-5)


def test_activation_checkpointing_does_no_harm_and_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = _network(toy_attention)

        def forward(self, inputs: Tensor) -> Tensor:
            return checkpoint(self.inner, inputs, use_reentrant=False)

    weights = []
    for callbacks in ([], [SoftmaxApproximation("recompute")]):
        with caplog.at_level(logging.INFO):
            _, module, _ = _fit(Checkpointed(), tmp_path, *callbacks)
        weights.append(module.state_dict())
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-4)
    assert "Activation checkpointing around network.inner" in caplog.text
    assert "fused kernel" not in caplog.text


def test_manual_optimization(tmp_path: Path) -> None:
    class Manual(Classifier):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            for _ in range(2):
                self.optimizers().zero_grad()
                loss = self.loss(self(batch[0]), batch[1])
                self.manual_backward(loss)
                self.optimizers().step()
            return loss

    for make_network in NETWORKS:
        weights = []
        for callbacks in ([], [SoftmaxApproximation("recompute")]):
            module = Manual(_network(make_network), CLASSES)
            toy_trainer(Parts(module, callbacks, _data()), tmp_path, max_epochs=1).fit(module, datamodule=_data())
            weights.append(module.state_dict())
        torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-4)
        assert callbacks[0].coverage.any


def test_only_the_named_modules_are_covered(tmp_path: Path) -> None:
    callback = SoftmaxApproximation("log4", modules="network.bert.bert.encoder.layer.1")
    _fit(_network(Bert), tmp_path, callback)
    assert list(callback.coverage.rows) == ["network.bert.bert.encoder.layer.1.attention.self"]
    callback = SoftmaxApproximation("log4", modules=["net*"])
    module = Classifier(_network(OwnAttention), CLASSES)
    found = traces(module)
    toy_trainer(Parts(module, [callback], _data()), tmp_path, max_epochs=1).fit(module, datamodule=_data())
    assert [row.route for row in callback.coverage.rows.values()] == ["saved tensors"]
    assert traces(module) == found


def test_codec_comes_from_the_memory_target(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        callback = SoftmaxApproximation("auto", memory_target=6.2)
        _fit(_network(toy_attention), tmp_path, callback)
    assert callback.codec.name == "recompute"
    assert "recompute:" in caplog.text


def test_codec_from_the_memory_target_needs_no_scores_where_there_are_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = SoftmaxApproximation("auto", memory_target=6.2)
    with caplog.at_level(logging.INFO):
        _fit(_network(OwnAttention), tmp_path, callback)
    assert {row.codec for row in callback.coverage.rows.values()} == {"log4"}
    assert "log4:" in caplog.text
    with pytest.raises(ValueError, match="memory_target=10 is out of reach"):
        _fit(_network(OwnAttention), tmp_path, SoftmaxApproximation("auto", memory_target=10))


def test_resume_goes_on_with_the_better_codec(tmp_path: Path) -> None:
    def callback() -> SoftmaxApproximation:
        return SoftmaxApproximation("log4", error_every_n_steps=1, max_error=1e-6)

    first = callback()
    trainer, module, _ = _fit(_network(toy_attention), tmp_path, first, limit_train_batches=2)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    resumed = callback()
    trainer = toy_trainer(Parts(module, [resumed], _data()), tmp_path, max_epochs=2, limit_train_batches=2)
    seen = []
    resumed.on_train_start = lambda *args: seen.append(resumed._approximation.codec.name)
    trainer.fit(module, datamodule=_data(), ckpt_path=tmp_path / "saved.ckpt")
    assert first.state_dict()["backed_off"] == "recompute"
    assert seen == ["recompute"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"codec": "log3"}, "codec 'log3' is unknown: take one of recompute"),
        ({"codec": "log4", "memory_target": 6}, "memory_target=6 belongs to codec='auto'"),
        ({"codec": "auto", "memory_target": 0}, "memory_target must be above 0"),
        ({"error_every_n_steps": 0}, "error_every_n_steps must be at least 1 or None, but is 0"),
        ({"max_error": 0.1}, "error_every_n_steps says how often to look, but is None"),
        ({"max_error": -0.1, "error_every_n_steps": 5}, "max_error=-0.1 must be above 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SoftmaxApproximation(**arguments)


def test_codec_of_a_wrong_type() -> None:
    with pytest.raises(TypeError, match="codec must be a Codec or one of"):
        SoftmaxApproximation(4)
    assert SoftmaxApproximation(Logarithmic(8)).codec.name == "log8"


def test_target_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    module = Classifier(_network(toy_attention), CLASSES)
    found = traces(module)
    with pytest.raises(ValueError, match=r"modules='encoder\.\*' matches no module of Classifier; there are network"):
        _run(module, SoftmaxApproximation(modules="encoder.*"), tmp_path)
    assert traces(module) == found


def _run(module: LightningModule, callback: SoftmaxApproximation, folder: Path, **trainer: Any) -> None:
    data = ToyData(*toy_tensors())
    toy_trainer(Parts(module, [callback], data), folder, **({"max_epochs": 1} | trainer)).fit(module, datamodule=data)


def test_model_without_attention_is_refused_before_a_step(tmp_path: Path) -> None:
    module = Classifier(toy_network(), CLASSES)
    before, found = plain(module.state_dict()), traces(module)
    with pytest.raises(MisconfigurationException, match="No softmax of Classifier was reached"):
        _run(module, SoftmaxApproximation(), tmp_path)
    assert plain(module.state_dict()) == before
    assert traces(module) == found
    with pytest.warns(UserWarning, match="No softmax of Classifier was reached"):
        _run(module, SoftmaxApproximation(allow_uncovered=True), tmp_path)
    assert plain(module.state_dict()) != before


@pytest.mark.parametrize("make_network", [Bert, toy_attention], ids=lambda network: network.__name__)
def test_frozen_attention_is_not_covered(make_network: Any, tmp_path: Path) -> None:
    network = _network(make_network)
    network.requires_grad_(False)
    head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    head.requires_grad_(True)
    with pytest.raises(MisconfigurationException, match="frozen: no gradient passes"):
        _fit(network, tmp_path, SoftmaxApproximation())


def test_rows_that_are_too_short_are_named(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"network: rows of 8 keys only"):
        _fit(_network(OwnAttention), tmp_path, SoftmaxApproximation(), data=_data(8))


@pytest.mark.parametrize(
    ("wrap", "sentence"),
    [
        (nn.DataParallel, "module 'network' is wrapped in DataParallel"),
        (lambda network: torch.compile(network, backend="eager"), "module 'network' is compiled"),
    ],
    ids=["wrapped", "compiled"],
)
def test_wrapped_and_compiled_models_are_refused(wrap: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=sentence):
        _run(Classifier(wrap(_network(toy_attention)), CLASSES), SoftmaxApproximation(), tmp_path)


def test_module_compiled_in_place_is_refused(tmp_path: Path) -> None:
    network = _network(toy_attention)
    network.layer.compile(backend="eager")
    with pytest.raises(MisconfigurationException, match=r"module 'network\.layer' is compiled"):
        _run(Classifier(network, CLASSES), SoftmaxApproximation(), tmp_path)


@each_network
def test_model_is_as_it_was_after_the_fit(make_network: Any, tmp_path: Path) -> None:
    module = Classifier(_network(make_network), CLASSES)
    found = traces(module)
    toy_trainer(Parts(module, [SoftmaxApproximation()], _data()), tmp_path, max_epochs=1).fit(
        module, datamodule=_data()
    )
    assert traces(module) == found
    if make_network is Bert:
        assert module.network.bert.config._attn_implementation == "eager"
