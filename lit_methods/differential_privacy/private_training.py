"""Private training in a loop of one's own, without a Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal, cast

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from lit_methods.differential_privacy.budget import check_budget, check_patterns
from lit_methods.differential_privacy.factorization import BandedSquareRoot, Factorization
from lit_methods.differential_privacy.ghost import GhostGradients
from lit_methods.differential_privacy.guards import check_normalization, check_parameters
from lit_methods.differential_privacy.loaders import AccountedLoader
from lit_methods.differential_privacy.plan import PrivacyPlan
from lit_methods.differential_privacy.probes import BufferWatch
from lit_methods.differential_privacy.run import Clipping, PrivateRun
from lit_methods.differential_privacy.samplers import AccountedBatchSampler
from lit_methods.differential_privacy.sampling import FixedOrder, Sampling
from lit_methods.errors import check_above, check_object


class PrivateTraining(PrivateRun):
    """A private run with its data; what :func:`make_private` returns.

    Attributes:
        optimizer: The private optimizer.
        loader: The training data, rebuilt; every batch needs exactly one optimizer step, an empty one too.
        plan: The run, worked out.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        plan: PrivacyPlan,
        loader: AccountedLoader,
        *,
        ledger: bool,
        clipping: Clipping,
        loss_reduction: Literal["mean", "sum"],
        allowed_buffers: Sequence[str],
        unsafe_seed: int | None,
    ) -> None:
        super().__init__(
            module,
            optimizer,
            plan,
            cast(AccountedBatchSampler, loader.batch_sampler),
            ledger=ledger,
            clipping=clipping,
            loss_reduction=loss_reduction,
            unsafe_seed=unsafe_seed,
        )
        self.loader = loader
        self._module, self._loss_reduction = module, loss_reduction
        self._buffers = BufferWatch(module, allowed_buffers)
        self.optimizer.attach_step_hook(self._before_release)
        self.sampler.before_pass = self._before_pass

    def backward(self, losses: Tensor) -> None:
        """The backward pass, for either clipping.

        Args:
            losses: One loss per example, shape ``(B,)``.
        """
        if isinstance(self.gradients, GhostGradients):
            self.gradients.backward(losses)
            self.optimizer.examples += len(losses)
        else:
            torch.autograd.backward(losses.mean() if self._loss_reduction == "mean" else losses.sum())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`PrivateRun.load_state_dict`; the next pass over the data begins where the saved one stopped."""
        super().load_state_dict(state)
        self.sampler.start_at(self.position)

    def _before_pass(self, start: int) -> None:
        if start != self.position:
            raise RuntimeError(
                f"A pass over the data would begin at batch {start}, but {self.noise.step} optimizer steps of"
                f" {len(self.loader)} batches each lead to batch {self.position}: examples would take part more often"
                " than the noise was planned for. Finish each pass, and take one step per batch; for larger batches"
                " than fit into memory use opacus.utils.batch_memory_manager.BatchMemoryManager."
            )
        check_normalization(self._module)
        self._buffers.check()

    def _before_release(self, optimizer: Optimizer) -> None:
        taken = self.noise.step - 1
        batch = self.sampler.position_after(taken, self.plan.accumulation, self.plan.batches_per_epoch)
        due = len(self.sampler.share(batch))
        if self.optimizer.examples not in (0, due):
            raise RuntimeError(
                f"Optimizer step {taken} has {self.optimizer.examples} per-sample gradients, but batch {batch}, which"
                f" is due, has {due} examples. Take one step per batch, also for an empty one (for larger batches than"
                " fit into memory use opacus.utils.batch_memory_manager.BatchMemoryManager), and keep one row per"
                " example: views or tokens folded into the batch dimension would let one example count several times."
            )
        if self.noise.step == 1:
            self._buffers.check()

    def __enter__(self) -> PrivateTraining:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def make_private(
    module: nn.Module,
    optimizer: Optimizer,
    loader: DataLoader[Any],
    *,
    epochs: int,
    epsilon: float | None = None,
    noise_multiplier: float | None = None,
    delta: float = 1e-5,
    max_grad_norm: float = 1.0,
    bandwidth: int | None = None,
    factorization: Factorization | None = None,
    clipping: Clipping = "per_sample",
    loss_reduction: Literal["mean", "sum"] = "mean",
    sampling: Sampling | None = None,
    ledger: bool = False,
    allowed_buffers: Sequence[str] = (),
    unsafe_seed: int | None = None,
) -> PrivateTraining:
    """Makes a plain PyTorch training loop differentially private by banded square root noise.

    Example::

        with make_private(model, optimizer, loader, epochs=10, epsilon=8.0) as private:
            for _ in range(10):
                for inputs, labels in private.loader:
                    private.optimizer.zero_grad()
                    private.backward(cross_entropy(model(inputs), labels, reduction="none"))
                    private.optimizer.step()
            print(private.guarantee())

    With several processes pass each the module itself, not its ``DistributedDataParallel``: the private optimizer adds
    up over them.

    Args:
        module: What is trained; on its device, in training mode.
        optimizer: The optimizer of all its trainable parameters.
        loader: A plain loader of a map-style data set; ``batch_size`` is per process.
        epochs: Full passes over the data.
        epsilon: Budget of the whole run. Either this or ``noise_multiplier``.
        noise_multiplier: Noise over sensitivity of the whole run.
        delta: The ``delta`` of the guarantee; well below one over the number of examples.
        max_grad_norm: Clip norm of one example's gradient.
        bandwidth: Bandwidth ``p`` of BSR; ``None`` lets the number of batches and the memory decide.
        factorization: Another strategy in place of BSR.
        clipping: ``"per_sample"`` keeps a gradient per example in memory; ``"ghost"`` takes two backward passes.
        loss_reduction: How the loss takes a batch together, where the loop calls ``loss.backward()`` itself.
        sampling: How batches are made; ``FixedOrder()`` unless given.
        ledger: For debugging: hold every batch to the plan as it is drawn.
        allowed_buffers: Patterns of buffers that may change because they do not depend on the data.
        unsafe_seed: Seed of the noise for tests; whoever knows it can subtract the noise.

    Returns:
        The run. Its ``state_dict`` is secret.

    Raises:
        ValueError: On parameters out of range, both or none of ``epsilon`` and ``noise_multiplier``, or a loader
            whose order can't be fixed.
        TypeError: Where ``allowed_buffers`` is no list of strings, or a string stands for an object.
        MisconfigurationException: On layers or parameters that can't be trained privately.
    """
    check_budget(epsilon, noise_multiplier, delta)
    check_above("max_grad_norm", max_grad_norm)
    patterns = check_patterns(allowed_buffers)
    check_object("factorization", factorization, Factorization, "BandedSquareRoot(bandwidth=8)")
    check_object("sampling", sampling, Sampling, "FixedOrder()")
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, but is {epochs!r}.")
    if bandwidth is not None and factorization is not None:
        raise ValueError(
            f"bandwidth={bandwidth!r} belongs to the default BandedSquareRoot. Set it in the factorization instead."
        )
    check_parameters(module, optimizer)
    check_normalization(module)
    shared = distributed.is_available() and distributed.is_initialized()
    rank, world_size = (distributed.get_rank(), distributed.get_world_size()) if shared else (0, 1)
    ordered = (sampling or FixedOrder()).loader(loader, rank=rank, world_size=world_size)
    plan = PrivacyPlan.make(
        module,
        optimizer,
        factorization or BandedSquareRoot(bandwidth),
        steps=epochs * len(ordered),
        batches_per_epoch=len(ordered),
        accumulation=1,
        sampler=cast(AccountedBatchSampler, ordered.batch_sampler),
        max_grad_norm=max_grad_norm,
        delta=delta,
        epsilon=epsilon,
        noise_multiplier=noise_multiplier,
        known_seed=unsafe_seed is not None,
    )
    return PrivateTraining(
        module,
        optimizer,
        plan,
        ordered,
        ledger=ledger,
        clipping=clipping,
        loss_reduction=loss_reduction,
        allowed_buffers=patterns,
        unsafe_seed=unsafe_seed,
    )
