"""Differentially private training of any LightningModule, with banded square root noise, as a callback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.nn.parallel import DistributedDataParallel

from lit_methods.differential_privacy.budget import check_budget, check_patterns
from lit_methods.differential_privacy.factorization import BandedSquareRoot, Factorization
from lit_methods.differential_privacy.guards import (
    check_layers,
    check_loggers,
    check_normalization,
    check_optimization,
    check_trainer,
)
from lit_methods.differential_privacy.noise import CorrelatedNoise
from lit_methods.differential_privacy.plan import PrivacyPlan
from lit_methods.differential_privacy.probes import BufferWatch
from lit_methods.differential_privacy.run_state import (
    check_complete,
    random_state,
    run_state,
    set_random_state,
)
from lit_methods.differential_privacy.samplers import AccountedBatchSampler
from lit_methods.differential_privacy.sampling import AccountedSource, FixedOrder, Sampling
from lit_methods.errors import check_above, check_choice, check_lightning, check_object

if TYPE_CHECKING:
    from lit_methods.differential_privacy.ghost import GhostBackward
    from lit_methods.differential_privacy.run import PrivateRun

RANDOM_STATE = "lit_methods_random_state"


class BandedSquareRootNoise(Callback):
    """Trains with differential privacy by banded square root (BSR) noise (Kalinin & Lampert 2024, arXiv 2405.13763).

    Momentum and weight decay are read from the optimizer, the training loader is rebuilt so that it is known who takes
    part when, the noise is calibrated to the steps that will really run, per-sample gradients come from Opacus' hooks.
    After the fit the module and its optimizer are as they were.

    Needs automatic optimization, one optimizer, a map-style training set, and no BatchNorm. Takes gradient
    accumulation, bf16, schedulers, DDP (with ``use_distributed_sampler=False``), checkpoint and resume.

    Args:
        epsilon: Budget of the whole run. Either this or ``noise_multiplier``.
        delta: The ``delta`` of the guarantee; well below one over the number of examples.
        max_grad_norm: Clip norm of one example's gradient.
        bandwidth: Bandwidth ``p`` of BSR; 1 is DP-SGD's independent noise, ``None`` lets the number of batches per
            epoch (or of a cycle) and the memory decide.
        factorization: Another strategy in place of BSR.
        sampling: How batches are made: ``FixedOrder()``, the default, or ``CyclicPoisson(cycle_length)``, whose coins
            amplify privacy.
        noise_multiplier: Noise over sensitivity of the whole run, in place of ``epsilon``.
        loss_reduction: How the module's loss takes a batch together.
        ledger: For debugging: hold every batch to the plan as it is drawn.
        allow_limited_batches: Accept ``limit_train_batches`` and ``overfit_batches``, and plan for them.
        allowed_buffers: Patterns (``fnmatch``) of buffers that may change because they do not depend on the data.
        clipping: ``"per_sample"`` keeps a gradient per example in memory; ``"ghost"`` takes two backward passes
            instead, and needs a module whose ``training_step`` returns the mean (or sum) of its own
            ``per_sample_loss(batch)`` of shape ``(B,)``.
        unsafe_seed: Seed of the noise for tests; whoever knows it can subtract the noise.

    Guarantees:
        - All models of the run together are ``(epsilon, delta)``-DP against leaving out one training example (under
          ``CyclicPoisson``: adding or removing one), for any loss that is a mean (or sum) of losses of single examples.
        - No step beyond the planned number is taken.
        - A resumed run continues bit for bit, or is refused. Excepted are random augmentation in worker processes, and
          dropout in all but the first process of DDP.

    Raises:
        ValueError: On parameters out of range, or both or none of ``epsilon`` and ``noise_multiplier``.
        TypeError: Where ``allowed_buffers`` is no list of strings, or a string stands for an object.
    """

    def __init__(
        self,
        epsilon: float | None = None,
        delta: float = 1e-5,
        max_grad_norm: float = 1.0,
        bandwidth: int | None = None,
        factorization: Factorization | None = None,
        sampling: Sampling | None = None,
        noise_multiplier: float | None = None,
        loss_reduction: Literal["mean", "sum"] = "mean",
        ledger: bool = False,
        allow_limited_batches: bool = False,
        allowed_buffers: Sequence[str] = (),
        clipping: Literal["per_sample", "ghost"] = "per_sample",
        unsafe_seed: int | None = None,
    ) -> None:
        super().__init__()
        check_budget(epsilon, noise_multiplier, delta)
        check_above("max_grad_norm", max_grad_norm)
        check_choice("clipping", clipping, ("per_sample", "ghost"))
        check_choice("loss_reduction", loss_reduction, ("mean", "sum"))
        check_object("factorization", factorization, Factorization, "BandedSquareRoot(bandwidth=8)")
        check_object("sampling", sampling, Sampling, "FixedOrder()")
        if bandwidth is not None and factorization is not None:
            raise ValueError(
                f"bandwidth={bandwidth!r} belongs to the default BandedSquareRoot. Set it in the factorization instead."
            )
        self.epsilon, self.delta, self.max_grad_norm = epsilon, delta, max_grad_norm
        self.factorization = factorization or BandedSquareRoot(bandwidth)
        self.noise_multiplier, self.loss_reduction = noise_multiplier, loss_reduction
        self.sampling, self.ledger, self.unsafe_seed = sampling or FixedOrder(), ledger, unsafe_seed
        self.allow_limited_batches, self.allowed_buffers = allow_limited_batches, check_patterns(allowed_buffers)
        self.clipping = clipping
        self.plan: PrivacyPlan | None = None
        self.noise: CorrelatedNoise | None = None
        self._restored: dict[str, Any] | None = None
        self._source: AccountedSource | None = None
        self._sampler: AccountedBatchSampler | None = None
        self._run: PrivateRun | None = None
        self._ghost: GhostBackward | None = None
        self._buffers: BufferWatch | None = None
        self._random: dict[str, Any] | None = None
        self._due, self._pending = 0, False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses what would void the guarantee, and takes over the making of batches."""
        check_lightning(pl_module)
        if stage != "fit":
            return
        check_trainer(trainer, self.allow_limited_batches)
        check_loggers(trainer)
        self.plan = self.noise = self._sampler = self._restored = self._random = None
        self._pending = False
        self._source = AccountedSource(trainer, self.sampling, self._position, self._saved_order)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plans the run, attaches the hooks, and puts the private optimizer in place of the module's.

        Raises:
            MisconfigurationException: If module, loader or optimizer can't be trained privately.
            RuntimeError: If the loader was set up before its order could be fixed.
            ValueError: If there is nothing to train on, or a checkpoint belongs to another plan.
        """
        from lit_methods.differential_privacy.ghost import GhostBackward, GhostGradients
        from lit_methods.differential_privacy.run import PrivateRun

        optimizer = check_optimization(pl_module, trainer.optimizers)
        check_normalization(pl_module)
        check_layers(pl_module)
        trainer.fit_loop.setup_data()  # with max_steps alone, estimated_stepping_batches would not
        steps = int(trainer.estimated_stepping_batches)
        sampler = self._sampler = self._source.sampler if self._source is not None else None
        if sampler is None:
            raise RuntimeError("The training loader was set up before the privacy callback could fix its order.")
        plan = self.plan = PrivacyPlan.make(
            pl_module,
            optimizer,
            self.factorization,
            steps=steps,
            batches_per_epoch=int(trainer.num_training_batches),
            accumulation=trainer.accumulate_grad_batches,
            sampler=sampler,
            max_grad_norm=self.max_grad_norm,
            delta=self.delta,
            epsilon=self.epsilon,
            noise_multiplier=self.noise_multiplier,
            known_seed=self.unsafe_seed is not None,
        )
        accumulation = float(trainer.accumulate_grad_batches)
        run = self._run = PrivateRun(
            pl_module,
            optimizer,
            plan,
            sampler,
            ledger=self.ledger,
            clipping=self.clipping,
            loss_reduction=self.loss_reduction,
            gradient_scale=accumulation,
            unsafe_seed=self.unsafe_seed,
        )
        self.noise = run.noise
        if self._restored is not None:
            run.load_state_dict(self._restored)
        if isinstance(run.gradients, GhostGradients):
            self._ghost = GhostBackward(pl_module, run.gradients, self.loss_reduction, accumulation)
        self._buffers = BufferWatch(pl_module, self.allowed_buffers)
        trainer.strategy.optimizers = [run.optimizer]
        rank_zero_info(plan.describe())
        if self.delta * plan.num_examples >= 1:
            rank_zero_warn(
                f"delta={self.delta} allows to publish one of {plan.num_examples} examples outright. Choose it well"
                f" below {1 / plan.num_examples:.1g}."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses to go on from a step whose noise is not known.

        Raises:
            ValueError: If the checkpoint has no noise state, or fit was called again on a finished run.
        """
        check_normalization(pl_module)
        taken = self.noise.step if self.noise is not None else 0
        if trainer.global_step != taken:
            raise ValueError(
                f"Training would go on from step {trainer.global_step}, but the noise stands at step {taken}: the"
                " checkpoint has no noise state (saved without this callback, or with save_weights_only=True), or fit"
                " was called again on a finished run. Start a new run with a new Trainer, and count both."
            )
        if self._random is not None:
            set_random_state(self._random)
        if isinstance(trainer.strategy.model, DistributedDataParallel):
            trainer.strategy.model.require_backward_grad_sync = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks again for layers that mix examples: their mode may have changed."""
        check_normalization(pl_module)

    def _position(self) -> int:
        if self._run is not None:
            return self._run.position
        return int(self._restored["position"]) if self._restored else 0

    def _saved_order(self) -> dict[str, Any] | None:
        return self._restored["sampler"] if self._restored else None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Refuses a batch out of turn: its examples would take part closer together than planned.

        Raises:
            RuntimeError: If it is out of turn.
        """
        if self._run is None or self.plan is None:
            return
        position, part = self._run.position, batch_idx % self.plan.accumulation
        due = position % len(self._run.sampler)
        if batch_idx - part != due:
            raise RuntimeError(
                f"Batch {batch_idx} of the epoch came where batch {due} was due: an epoch was cut short"
                " or an optimizer step left out, so that examples return sooner than the noise was planned for. Let"
                " every epoch run to its end, and every optimizer step happen."
            )
        self._run.gradients.forget()
        self._run.optimizer.original_optimizer.zero_grad()
        self._due = len(self._run.sampler.share(position + part))

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clips at once, so that accumulation never holds more than one batch of per-sample gradients."""
        if self._run is not None:
            self._run.gradients.expect(self._due)
            self._run.optimizer.clip_and_accumulate()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs epsilon as it is spent, and looks for buffers that the first step changed."""
        if self._buffers is not None and trainer.global_step == 1:
            self._buffers.check()
        every = cast(Any, trainer).log_every_n_steps
        if every and trainer.global_step % every == 0:
            self._log_epsilon(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs epsilon at the end of each epoch, and looks again for buffers that changed."""
        if self._buffers is not None:
            self._buffers.check()
        self._log_epsilon(pl_module)

    def _log_epsilon(self, pl_module: LightningModule) -> None:
        if self.plan is not None and self.noise is not None:
            pl_module.log("dp/epsilon", self.plan.epsilon_after(self.noise.step), prog_bar=True, rank_zero_only=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """States the guarantee in one sentence, and draws what it rests on."""
        if self.plan is None or self.noise is None or self.noise.step == 0:
            return
        rank_zero_info(self.plan.guarantee(self.noise.step))
        if trainer.is_global_zero and not cast(Any, trainer).fast_dev_run:
            from lit_methods.differential_privacy.figures import plan_figure
            from lit_methods.logging import log_figure

            log_figure(trainer, "dp/plan", plan_figure(self.plan))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Says what was spent until the interruption, and leaves the module as it was found."""
        if self.plan is not None and self.noise is not None and self.noise.step > 0:
            rank_zero_info(f"Interrupted. Spent so far: {self.plan.guarantee(self.noise.step)}")
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leaves the module, the loader and the optimizer as they were found."""
        if stage != "fit":
            return
        if self._source is not None:
            self._source.remove()
        if self._ghost is not None:
            self._ghost.remove()
        if self._run is not None:
            self._pending = self._run.optimizer.pending  # an interrupted run may be saved after this
            self._run.close()
            if trainer.strategy.optimizers == [self._run.optimizer]:
                trainer.strategy.optimizers = [self._run.optimizer.original_optimizer]
        self._run = self._ghost = self._buffers = self._source = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the global random states: the same noise on gradients of another dropout mask would give it away."""
        checkpoint[RANDOM_STATE] = random_state()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keeps the saved random states until training starts."""
        self._random = checkpoint.get(RANDOM_STATE)

    def state_dict(self) -> dict[str, Any]:
        """The noise's state and the plan's fingerprint. Secret: with it the noise can be subtracted."""
        if self.plan is None or self.noise is None or self._sampler is None:
            return {}
        pending = self._pending if self._run is None else self._run.optimizer.pending
        return run_state(self.plan, self.noise, self._sampler, pending)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the saved state until the plan stands that it must fit."""
        if state_dict:
            check_complete(state_dict)
        self._restored = state_dict or None
