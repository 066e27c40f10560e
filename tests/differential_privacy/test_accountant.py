"""The accountant that Opacus knows as "mf", and why the stock ones can't take its place unnoticed."""

from __future__ import annotations

import importlib
import io

import pytest
import torch
from opacus import PrivacyEngine
from opacus.accountants import PRVAccountant, RDPAccountant, create_accountant
from opacus.optimizers import DPOptimizer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_methods.differential_privacy import accountant as module
from lit_methods.differential_privacy.accounting import Accounting, FixedOrderAccounting
from lit_methods.differential_privacy.calibration import calibrate
from lit_methods.differential_privacy.factorization import BandedSquareRoot
from lit_methods.differential_privacy.noise import CorrelatedNoise
from lit_methods.differential_privacy.optimizer import CorrelatedNoiseOptimizer
from lit_methods.differential_privacy.poisson import CyclicPoissonBatchSampler
from lit_methods.differential_privacy.samplers import AccountedBatchSampler, FixedOrderBatchSampler
from lit_methods.differential_privacy.workload import Workload


def accounting(sampler: AccountedBatchSampler | None = None, epsilon: float = 2.0) -> Accounting:
    sampler = sampler or FixedOrderBatchSampler(40, 4)
    strategy = BandedSquareRoot(3).strategy(Workload.sgd(), sampler.participation(20), 3)
    return calibrate(strategy, sampler, epsilon, 1e-5)


def private_optimizer(run: Accounting) -> CorrelatedNoiseOptimizer:
    return CorrelatedNoiseOptimizer(
        torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1),
        noise=CorrelatedNoise(run.strategy.coefficients, 3, 20, generator_seed=0),
        noise_std=run.noise_std,
        max_grad_norm=1.0,
        expected_batch_size=4,
    )


@pytest.mark.parametrize("kind", [FixedOrderBatchSampler, CyclicPoissonBatchSampler])
def test_steps_are_counted_and_told_at_any_delta(kind: type) -> None:
    run = accounting(FixedOrderBatchSampler(40, 4) if kind is FixedOrderBatchSampler else kind(40, 4, 5))
    accountant = module.MatrixFactorizationAccountant(run)
    assert accountant.get_epsilon(1e-5) == 0.0
    hook = accountant.get_optimizer_hook_fn()
    optimizer = private_optimizer(run)
    spent = []
    for _ in range(20):
        hook(optimizer)
        spent.append(accountant.get_epsilon(1e-5))
    assert len(accountant) == 20
    assert spent == sorted(spent)
    assert spent[10] == run.epsilon_after(11)
    assert spent[-1] == pytest.approx(2.0, rel=1e-4)
    assert accountant.get_epsilon(1e-7) > spent[-1]
    with pytest.raises(RuntimeError, match="All 20 planned steps are spent"):
        accountant.step()


def test_the_registry_makes_it_and_it_must_be_bound() -> None:
    accountant = create_accountant("mf")
    assert accountant.mechanism() == "mf"
    with pytest.raises(ValueError, match=r"no accounting yet.*bind"):
        accountant.get_epsilon(1e-5)
    with pytest.raises(ValueError, match="no accounting yet"):
        accountant.state_dict()
    accountant.bind(accounting())
    accountant.bind(accounting())
    accountant.step()
    assert accountant.get_epsilon(1e-5) == accounting().epsilon_after(1)
    with pytest.raises(ValueError, match="another run"):
        accountant.bind(accounting(epsilon=3.0))


def test_a_second_import_registers_the_new_class() -> None:
    old = module.MatrixFactorizationAccountant
    new = importlib.reload(module).MatrixFactorizationAccountant
    assert new is not old
    assert type(create_accountant("mf")) is new


def test_resume_goes_on_counting_the_same_run_only() -> None:
    accountant = module.MatrixFactorizationAccountant(accounting())
    for _ in range(7):
        accountant.step()
    buffer = io.BytesIO()
    torch.save(accountant.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    resumed = module.MatrixFactorizationAccountant(accounting())
    resumed.load_state_dict(state)
    assert len(resumed) == 7
    assert resumed.get_epsilon(1e-5) == accountant.get_epsilon(1e-5)
    with pytest.raises(ValueError, match="another run: noise_multiplier differ"):
        module.MatrixFactorizationAccountant(accounting(epsilon=3.0)).load_state_dict(state)
    with pytest.raises(ValueError, match="accountant 'rdp', not of 'mf'"):
        resumed.load_state_dict(RDPAccountant().state_dict())
    with pytest.raises(ValueError, match="accountant None"):
        resumed.load_state_dict({})


def test_what_stock_opacus_passes_is_refused() -> None:
    run = accounting()
    accountant = module.MatrixFactorizationAccountant(run)
    with pytest.raises(ValueError, match=r"sample_rate=0.1 .*make_private"):
        accountant.step(noise_multiplier=run.noise_std, sample_rate=0.1)
    with pytest.raises(ValueError, match=r"sample_rate=0.1"):
        accountant.get_optimizer_hook_fn(sample_rate=0.1)
    with pytest.raises(ValueError, match=r"noise 1.0 is not the planned"):
        accountant.step(noise_multiplier=1.0)
    stock = DPOptimizer(
        torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1),
        noise_multiplier=run.noise_std,
        max_grad_norm=1.0,
        expected_batch_size=4,
    )
    with pytest.raises(TypeError, match="DPOptimizer adds independent noise"):
        accountant.get_optimizer_hook_fn()(stock)
    with pytest.raises(ValueError, match=r"delta.*1.5"):
        accountant.get_epsilon(1.5)
    assert len(accountant) == 0


@pytest.mark.parametrize("stock", [RDPAccountant, PRVAccountant])
def test_stock_accountants_on_correlated_noise_stop_at_the_first_step(stock: type) -> None:
    optimizer, accountant = private_optimizer(accounting()), stock()
    optimizer.attach_step_hook(accountant.get_optimizer_hook_fn(sample_rate=0.1))
    for p in optimizer.params:
        p.grad_sample = torch.ones(4, *p.shape)
    with pytest.raises(RuntimeError, match="epsilon would be wrong"):
        optimizer.step()
    assert len(accountant) == 0


def test_it_counts_the_steps_of_the_real_optimizer() -> None:
    run = accounting()
    optimizer, accountant = private_optimizer(run), module.MatrixFactorizationAccountant(run)
    optimizer.attach_step_hook(accountant.get_optimizer_hook_fn())
    for _ in range(3):
        for p in optimizer.params:
            p.grad_sample = torch.ones(4, *p.shape)
        optimizer.step()
    assert len(accountant) == optimizer.noise.step == 3


@pytest.mark.filterwarnings("ignore:Secure RNG turned off")  # Opacus on its own noise
@pytest.mark.parametrize("poisson_sampling", [True, False])
def test_the_stock_engine_stops_before_it_trains(poisson_sampling: bool) -> None:
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match=r"sample_rate=.*without PrivacyEngine.make_private"):
        PrivacyEngine(accountant="mf").make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=DataLoader(TensorDataset(torch.rand(8, 2)), batch_size=4),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            poisson_sampling=poisson_sampling,
        )


def test_it_is_offered_by_the_room() -> None:
    from lit_methods import differential_privacy

    assert differential_privacy.MatrixFactorizationAccountant.mechanism() == "mf"
    assert isinstance(accounting(), FixedOrderAccounting)
