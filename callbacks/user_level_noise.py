"""User-level privacy of federated training, by banded square root noise on the server, as a callback."""

from __future__ import annotations

from typing import Any, cast

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_methods.differential_privacy.budget import check_budget
from lit_methods.differential_privacy.factorization import BandedSquareRoot, Factorization
from lit_methods.differential_privacy.user_level import UserLevelRounds
from lit_methods.differential_privacy.workload import Workload
from lit_methods.errors import check_above, check_lightning, check_object, check_strategy


class UserLevelNoise(Callback):
    """Clips what each client of a federated module sends, and adds banded square root noise to the server's mean.

    The unit of privacy is one client with all its data. Clients are shuffled into cohorts that take turns, in place of
    uniform draws, so that the noise of Kalinin & Lampert 2024 (arXiv 2405.13763) may be correlated over a turn; their
    updates count alike. The server's momentum and decay are read from its optimizer.

    It fits any LightningModule whose steps are rounds and whose attribute `aggregation` draws the clients and combines
    their updates, such as `lit_methods.federated.FederatedModule` with any of its strategies.

    Args:
        epsilon: Budget of the whole run. Either this or ``noise_multiplier``.
        delta: The ``delta`` of the guarantee; well below one over the number of clients.
        max_norm: Clip norm of one client's update of the shared model.
        factorization: The strategy; `BandedSquareRoot`, with the number of cohorts as its bandwidth, by default.
        noise_multiplier: Noise over sensitivity of the whole run, in place of ``epsilon``.
        unsafe_seed: Seed of the noise for tests; whoever knows it can subtract the noise.

    Guarantees:
        - The server's models after all rounds together are ``(epsilon, delta)``-DP against leaving out one client.
        - Each client takes part once in a turn of the cohorts, and no round beyond the planned number is taken.
        - A resumed run continues bit for bit, or is refused.

    Raises:
        ValueError: On parameters out of range, or both or none of ``epsilon`` and ``noise_multiplier``.
    """

    def __init__(
        self,
        epsilon: float | None = None,
        delta: float = 1e-5,
        max_norm: float = 1.0,
        factorization: Factorization | None = None,
        noise_multiplier: float | None = None,
        unsafe_seed: int | None = None,
    ) -> None:
        super().__init__()
        check_budget(epsilon, noise_multiplier, delta)
        check_above("max_norm", max_norm)
        check_object("factorization", factorization, Factorization, "BandedSquareRoot(bandwidth=8)")
        self.epsilon, self.delta, self.max_norm = epsilon, delta, max_norm
        self.noise_multiplier, self.unsafe_seed = noise_multiplier, unsafe_seed
        self.factorization = BandedSquareRoot() if factorization is None else factorization
        self.rounds: UserLevelRounds | None = None
        self._saved: dict[str, Any] = {}
        self._replaced: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses modules and trainers for which the guarantee would not hold.

        Raises:
            MisconfigurationException: Saying which.
        """
        check_lightning(pl_module)
        if stage != "fit":
            return
        if not all(hasattr(getattr(pl_module, "aggregation", None), name) for name in ("sample", "combine")):
            raise MisconfigurationException(
                f"UserLevelNoise adds noise where a server averages clients, but {type(pl_module).__name__} has no"
                " `aggregation` that does so. For the privacy of single examples use BandedSquareRootNoise."
            )
        check_strategy(trainer, "UserLevelNoise adds noise to whole updates")
        if trainer.world_size > 1:
            raise MisconfigurationException(
                f"UserLevelNoise adds the noise in one process, but the Trainer has {trainer.world_size}: each would"
                " add its own. Use --trainer.devices=1."
            )
        if trainer.max_epochs == -1 and trainer.max_steps == -1:
            raise MisconfigurationException(
                "UserLevelNoise plans the noise for a number of rounds; set max_epochs or max_steps."
            )
        statistics = [name for name, _ in pl_module.named_buffers()]
        if statistics and getattr(pl_module, "buffer_policy", "aggregate") != "local":
            raise MisconfigurationException(
                f"Buffers such as {statistics[0]} are averaged without noise. Use GroupNorm in place of BatchNorm, or"
                " buffer_policy='local'."
            )
        self.rounds, self._saved = None, {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plans the noise for all rounds, and puts the noisy mean in the place of the module's own."""
        trainer.fit_loop.setup_data()  # with max_steps alone, estimated_stepping_batches would not
        self.rounds = UserLevelRounds(
            int(trainer.estimated_stepping_batches),
            Workload.from_optimizer(trainer.optimizers[0]),
            max_norm=self.max_norm,
            epsilon=self.epsilon,
            noise_multiplier=self.noise_multiplier,
            delta=self.delta,
            factorization=self.factorization,
            unsafe_seed=self.unsafe_seed,
        )
        self.rounds.load_state_dict(self._saved)
        module = cast(Any, pl_module)
        self._replaced, module.aggregation = module.aggregation, self.rounds

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tells after how many rounds training goes on, where the noise must stand too."""
        if self.rounds is not None:
            self.rounds.taken = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs `dp/epsilon` as it is spent."""
        server = None if self.rounds is None else self.rounds.server
        if server is None:
            return
        pl_module.log("dp/epsilon", server.epsilon(), on_step=True, on_epoch=False, prog_bar=True, batch_size=1)
        clients = server.expected_users * server.accounting.strategy.participation.separation
        if server.noise.step == 1 and self.delta * clients >= 1:
            rank_zero_warn(
                f"delta={self.delta} allows to publish one of {clients} clients outright. Choose it well below"
                f" {1 / clients:.1g}."
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """States the guarantee in one sentence."""
        if self.rounds is not None and self.rounds.server is not None:
            rank_zero_info(self.rounds.server.guarantee())

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Says what was spent until the interruption, and leaves the module as it was found."""
        if self.rounds is not None and self.rounds.server is not None:
            rank_zero_info(f"Interrupted. Spent so far: {self.rounds.server.guarantee()}")
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the module its own aggregation back."""
        if stage == "fit" and self._replaced is not None:
            cast(Any, pl_module).aggregation, self._replaced = self._replaced, None

    def state_dict(self) -> dict[str, Any]:
        """The noise's state and who took part when. Secret: with it the noise can be subtracted."""
        return {} if self.rounds is None else self.rounds.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the saved state until the plan stands that it must fit."""
        self._saved = state_dict
