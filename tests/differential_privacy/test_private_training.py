"""Private training in a plain loop: the same weights as under the callback, guarded and resumable."""

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from opacus.utils.batch_memory_manager import BatchMemoryManager
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lit_methods.differential_privacy import (
    CyclicPoisson,
    FixedOrder,
    FixedOrderBatchSampler,
    PrivateTraining,
    make_private,
)

EXAMPLES, BATCH = 42, 8


def data() -> TensorDataset:
    inputs = 2 * torch.randn(EXAMPLES, 6, generator=torch.Generator().manual_seed(5))
    return TensorDataset(inputs, inputs[:, :3].argmax(dim=1))


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))


def flat(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def started(network: nn.Module, **options: Any) -> PrivateTraining:
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.2, momentum=0.9)
    loader = DataLoader(data(), batch_size=BATCH, shuffle=True)
    budget: dict[str, Any] = {} if "noise_multiplier" in options else {"epsilon": 8.0}
    return make_private(network, optimizer, loader, **{"epochs": 3, "unsafe_seed": 3, **budget, **options})


def one_pass(network: nn.Module, private: PrivateTraining, loader: Any = None) -> None:
    for inputs, labels in private.loader if loader is None else loader:
        private.optimizer.zero_grad()
        private.backward(cross_entropy(network(inputs), labels, reduction="none"))
        private.optimizer.step()


def trained(epochs: int = 3, **options: Any) -> Tensor:
    network = model()
    with started(network, **options) as private:
        for _ in range(epochs):
            one_pass(network, private)
    return flat(network)


def by_hand(max_grad_norm: float) -> Tensor:
    """Clipped SGD, one example at a time."""
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.2, momentum=0.9)
    for _ in range(3):
        for batch in FixedOrderBatchSampler(EXAMPLES, BATCH):
            total = [torch.zeros_like(p) for p in network.parameters()]
            for index in batch:
                inputs, label = data()[index]
                gradients = torch.autograd.grad(
                    cross_entropy(network(inputs[None]), label[None]), list(network.parameters())
                )
                norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
                for sum_, gradient in zip(total, gradients, strict=True):
                    sum_ += gradient * min(1.0, max_grad_norm / norm)
            for p, sum_ in zip(network.parameters(), total, strict=True):
                p.grad = sum_ / BATCH
            optimizer.step()
    return flat(network)


@pytest.mark.parametrize("clipping", ["per_sample", "ghost"])
def test_without_noise_it_is_clipped_sgd(clipping: str) -> None:
    result = trained(noise_multiplier=0.0, max_grad_norm=0.5, clipping=clipping)
    torch.testing.assert_close(result, by_hand(0.5), rtol=1e-4, atol=1e-5)


def test_it_equals_the_callback() -> None:
    from tests.callbacks.toys import Toy, private, toy_loader, toy_trainer
    from tests.callbacks.toys import flat as flat_module

    module = Toy(weight_decay=0.0)
    toy_trainer(private()).fit(module, toy_loader())
    assert torch.equal(trained(), flat_module(module))


def test_ghost_clipping_gives_the_same_noisy_weights() -> None:
    torch.testing.assert_close(trained(clipping="ghost"), trained(), rtol=0, atol=1e-5)


def test_epsilon_grows_to_the_budget_and_is_stated() -> None:
    network = model()
    with started(network) as private:
        spent = [private.epsilon()]
        for _ in range(3):
            one_pass(network, private)
            spent.append(private.epsilon())
    assert spent[0] == 0.0
    assert spent == sorted(spent)
    assert spent[-1] == pytest.approx(8.0)
    assert "(8, 1e-05)-differential privacy" in private.guarantee()
    with pytest.raises(RuntimeError, match="All 18 planned steps"):
        private.noise.next()
    assert not any(layer._forward_hooks or layer._backward_hooks for layer in network.modules())


def test_physical_batches_of_opacus_memory_manager_change_nothing() -> None:
    network = model()
    with started(network) as private:
        for _ in range(3):
            with BatchMemoryManager(
                data_loader=private.loader, max_physical_batch_size=3, optimizer=private.optimizer
            ) as loader:
                one_pass(network, private, loader)
    torch.testing.assert_close(flat(network), trained(), rtol=1e-4, atol=1e-5)
    assert private.noise.step == 18


@pytest.mark.parametrize("steps", [6, 8])
def test_resumed_equals_uninterrupted(steps: int) -> None:
    network = model()
    private = started(network)
    while private.noise.step < steps:
        for inputs, labels in private.loader:
            private.optimizer.zero_grad()
            private.backward(cross_entropy(network(inputs), labels, reduction="none"))
            private.optimizer.step()
            if private.noise.step == steps:
                break
    saved = private.state_dict(), private.optimizer.state_dict(), network.state_dict()
    resumed = model()
    other = started(resumed, unsafe_seed=9)
    for target, state in zip((other, other.optimizer, resumed), saved, strict=True):
        target.load_state_dict(state)
    while other.noise.step < 18:
        one_pass(resumed, other)
    assert torch.equal(flat(resumed), trained())


def test_cyclic_poisson_sampling_resumes_with_its_secret_seed() -> None:
    network = model()
    private = started(network, sampling=CyclicPoisson(3), ledger=True)
    one_pass(network, private)
    saved = private.state_dict(), deepcopy(private.optimizer.state_dict()), deepcopy(network.state_dict())
    while private.noise.step < 18:
        one_pass(network, private)
    resumed = model()
    other = started(resumed, sampling=CyclicPoisson(3), unsafe_seed=9)
    for target, state in zip((other, other.optimizer, resumed), saved, strict=True):
        target.load_state_dict(state)
    while other.noise.step < 18:
        one_pass(resumed, other)
    assert torch.equal(flat(resumed), flat(network))
    assert other.epsilon() == pytest.approx(8.0, rel=1e-3)
    assert "adding or removing any one training example" in other.guarantee()


def test_another_order_is_refused() -> None:
    saved = started(model()).state_dict()
    with pytest.raises(ValueError, match="seed \\(saved 0, now 1\\)"):
        started(model(), sampling=FixedOrder(1)).load_state_dict(saved)


@pytest.mark.parametrize(
    ("changed", "match"),
    [({"epsilon": 4.0}, "noise_multiplier"), ({"max_grad_norm": 2.0}, "max_grad_norm"), ({"epochs": 4}, "steps")],
)
def test_a_changed_plan_is_refused(changed: dict[str, Any], match: str) -> None:
    saved = started(model()).state_dict()
    with pytest.raises(ValueError, match=f"another private run.*{match}"):
        started(model(), **changed).load_state_dict(saved)


def test_a_state_without_noise_or_in_the_middle_of_a_batch_is_refused() -> None:
    private = started(model())
    saved = private.state_dict()
    with pytest.raises(ValueError, match="stripped for publication"):
        private.load_state_dict({"fingerprint": saved["fingerprint"]})
    with pytest.raises(ValueError, match="middle of a gradient accumulation"):
        private.load_state_dict({**saved, "pending": True})


def test_a_pass_that_was_broken_off_or_skipped_is_refused() -> None:
    network = model()
    private = started(network)
    for inputs, labels in private.loader:
        private.backward(cross_entropy(network(inputs), labels, reduction="none"))
        private.optimizer.step()
        break
    with pytest.raises(RuntimeError, match="begin at batch 0, but 1 optimizer steps of 6 batches"):
        next(iter(private.loader))


def two_batches_a_step(network: nn.Module, private: PrivateTraining) -> None:
    for index, (inputs, labels) in enumerate(private.loader):
        private.backward(cross_entropy(network(inputs), labels, reduction="none"))
        if index % 2:
            private.optimizer.step()
            private.optimizer.zero_grad()


@pytest.mark.parametrize("clipping", ["per_sample", "ghost"])
def test_two_batches_in_one_step_are_refused_before_the_release(clipping: str) -> None:
    network = model()
    before = flat(network).clone()
    with pytest.raises(
        RuntimeError, match=r"step 0 has 16 per-sample gradients, but batch 0.*has 8.*BatchMemoryManager"
    ):
        two_batches_a_step(network, started(network, clipping=clipping))
    assert torch.equal(flat(network), before)


class Folded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs.reshape(-1, 2)).reshape(len(inputs), -1, 3).mean(dim=1)


def test_rows_that_are_parts_of_examples_are_refused_before_the_release() -> None:
    network = Folded()
    before = flat(network).clone()
    with pytest.raises(RuntimeError, match=r"step 0 has 24 per-sample gradients, but batch 0.*has 8 examples"):
        one_pass(network, started(network))
    assert torch.equal(flat(network), before)


@pytest.mark.parametrize("clipping", ["per_sample", "ghost"])
def test_an_empty_batch_needs_its_step(clipping: str) -> None:
    sampling = CyclicPoisson(3, unsafe_seed=5)
    network, loader = model(), DataLoader(data(), batch_size=1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.2)
    options: dict[str, Any] = {"epochs": 1, "epsilon": 8.0, "sampling": sampling, "clipping": clipping}
    with make_private(network, optimizer, loader, **options) as private:
        first = next(batch for batch in range(EXAMPLES) if not private.sampler.share(batch))
        with pytest.raises(RuntimeError, match=rf"batch {first}, which is due, has 0 examples"):
            one_pass(network, private, (batch for batch in private.loader if len(batch[0])))
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.2)
    with make_private(network, optimizer, loader, **options) as private:
        one_pass(network, private)
        assert private.noise.step == EXAMPLES


def test_a_batch_that_was_discarded_may_be_taken_again() -> None:
    network = model()
    with started(network, clipping="ghost") as private:
        for inputs, labels in private.loader:
            for _ in range(2):
                private.optimizer.zero_grad()
                private.backward(cross_entropy(network(inputs), labels, reduction="none"))
            private.optimizer.step()
        assert private.noise.step == 6


def test_layers_that_turn_to_batch_statistics_are_noticed() -> None:
    network = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3, affine=False).eval())
    private = started(network)
    network.train()
    with pytest.raises(MisconfigurationException, match="BatchNorm1d that uses statistics of the batch"):
        next(iter(private.loader))


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.frozen = nn.Module()
        self.frozen.register_buffer("mean", torch.zeros(6))

    def forward(self, inputs: Tensor) -> Tensor:
        self.frozen.mean += inputs.detach().mean(dim=0)
        return self.layer(inputs)


def test_buffers_that_learn_are_noticed_before_the_first_release() -> None:
    network = Counting()
    before = flat(network).clone()
    with pytest.raises(MisconfigurationException, match=r"buffers \['frozen.mean'\] changed"):
        one_pass(network, started(network))
    assert torch.equal(flat(network), before)
    allowing = Counting()
    with pytest.raises(TypeError, match=r"Write allowed_buffers=\['frozen.\*'\]"):
        started(allowing, allowed_buffers="frozen.*")
    private = started(allowing, allowed_buffers=["frozen.*"])
    for _ in range(3):
        one_pass(allowing, private)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"epsilon": 1.0, "noise_multiplier": 1.0}, "either epsilon or noise_multiplier"),
        ({"epsilon": 0.0}, "epsilon=0.0 must be above 0, and finite"),
        ({"delta": 1.0}, "delta must lie in"),
        ({"max_grad_norm": 0.0}, "max_grad_norm=0.0 must be above 0, and finite"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"clipping": "ghost", "loss_reduction": "none"}, "loss_reduction must be one of .*'none'"),
        ({"clipping": "flat"}, "clipping must be one of .*'flat'"),
    ],
)
def test_bad_arguments(options: dict[str, Any], match: str) -> None:
    network = model()
    with pytest.raises(ValueError, match=match):
        started(network, **options)
    assert not any(layer._forward_hooks for layer in network.modules())


def test_parameters_that_the_module_or_the_optimizer_lacks() -> None:
    network, other = model(), nn.Linear(2, 2)
    loader = DataLoader(data(), batch_size=BATCH)
    with pytest.raises(MisconfigurationException, match=r"2.weight.*no optimizer"):
        make_private(network, torch.optim.SGD(network[0].parameters(), lr=0.1), loader, epochs=1, epsilon=1.0)
    both = torch.optim.SGD([*network.parameters(), *other.parameters()], lr=0.1)
    with pytest.raises(MisconfigurationException, match=r"shapes \[\(2, 2\), \(2,\)\] that are not Sequential's"):
        make_private(network, both, loader, epochs=1, epsilon=1.0)
