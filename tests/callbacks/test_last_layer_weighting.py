"""The last layer's gains are taken out of the training step itself."""

from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lit_methods import Classifier
from lit_methods.data_manipulation import (
    AtTheta,
    ForwardMode,
    Hypergradient,
    LastLayer,
    PlainGradient,
    RenReweighting,
    weighted_mean,
)
from tests.callbacks.weighting_toys import B, N, Own, data_weighting, fit, momentum_sgd, toy_classifier

pytestmark = pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no")  # toys without validation


class Twice(nn.Module):
    """Runs its last layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(inputs) + self.head(-inputs)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_of_a_network_of_one_layer_it_is_the_whole_hypergradient(accumulate: int) -> None:
    found = []
    for hypergradient in (LastLayer(), Hypergradient(ForwardMode())):
        torch.manual_seed(1)
        callback = data_weighting(hypergradient=hypergradient)
        fit(Classifier(nn.Linear(4, 3), 3, optimizer=momentum_sgd), callback, accumulate_grad_batches=accumulate)
        found.append(callback.weights())
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    assert (found[0] - 1).abs().max() > 0.05


@pytest.mark.parametrize(("lookahead", "passes"), [(None, 1), (AtTheta(), 2)], ids=["training step", "at theta"])
def test_training_examples_pass_the_network_once(lookahead: Any, passes: int) -> None:
    rows: list[int] = []
    module = toy_classifier()
    module.network[0].register_forward_hook(lambda layer, inputs, output: rows.append(len(output)))
    fit(module, data_weighting(hypergradient=LastLayer(lookahead=lookahead)), max_epochs=1)
    validation = 8
    probe = 2 * B  # twice, to see that the losses repeat
    assert sum(rows) == probe + passes * N + (N // B) * validation


def test_ren_takes_the_last_layer_before_the_step() -> None:
    callback = data_weighting(strategy=RenReweighting(), hypergradient=LastLayer(lookahead=AtTheta()))
    fit(toy_classifier(), callback)
    assert callback.weights().std() > 0.1
    with pytest.raises(MisconfigurationException, match=r"look-ahead before the training step, such as AtTheta\(\)"):
        data_weighting(strategy=RenReweighting(), hypergradient=LastLayer())


def test_mixed_precision_weights_are_near_full_ones() -> None:
    found = []
    for precision in ("32-true", "bf16-mixed"):
        callback = data_weighting(hypergradient=LastLayer())
        fit(toy_classifier(), callback, precision=precision)
        found.append(callback.weights())
    torch.testing.assert_close(found[1], found[0], rtol=0.1, atol=0.1)
    assert (found[1] - 1).abs().max() > 0.05


@pytest.mark.filterwarnings("ignore:.training_step. returned .None")  # the batch is left out on purpose
def test_a_batch_that_is_left_out_teaches_nothing() -> None:
    class Skips(Own):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
            return None if batch_idx == 0 else weighted_mean(self, self.per_sample_loss(batch))

    callback = data_weighting(criterion=None, hypergradient=LastLayer())
    fit(Skips(), callback, max_epochs=1)
    visits = callback.strategy.table.visits
    assert visits[:B].tolist() == [0] * B
    assert visits[B:].tolist() == [1] * (N - B)


def test_no_hook_stays_behind_when_a_step_fails() -> None:
    class Fails(Own):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            raise OSError("the disk is gone")

    module = Fails()
    with pytest.raises(OSError, match="the disk is gone"):
        fit(module, data_weighting(criterion=None, hypergradient=LastLayer()))
    assert not any(layer._forward_hooks for layer in module.modules())


def test_layers_that_do_not_serve_are_refused() -> None:
    with pytest.raises(ValueError, match="lookahead=PlainGradient moves all parameters"):
        LastLayer(lookahead=PlainGradient())
    with pytest.raises(ValueError, match=r"ran 2 times .* or use Hypergradient\(\)"):
        fit(Classifier(Twice(), 3, optimizer=momentum_sgd), data_weighting(hypergradient=LastLayer()))

    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.aside = nn.Linear(4, 3), nn.Linear(4, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            self.aside(inputs)
            return self.body(inputs)

    with pytest.raises(ValueError, match=r"layer='network\.aside' has no part in the loss"):
        fit(Classifier(Aside(), 3, optimizer=momentum_sgd), data_weighting(hypergradient=LastLayer("network.aside")))
