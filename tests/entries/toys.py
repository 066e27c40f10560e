"""What the toy runs of all rooms are made of."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from lit_methods.backbones import MLP

EXAMPLES, BATCH, FEATURES, CLASSES = 48, 8, 4, 3


class Parts(NamedTuple):
    """One run, every object new; the optimizer steps of an epoch are `EXAMPLES / BATCH`."""

    module: LightningModule
    callbacks: list[Callback]
    data: LightningDataModule
    trainer: dict[str, Any] = {}  # noqa: RUF012  never written to


class ToyData(LightningDataModule):
    """The same tensors for all four stages, in their order unless `shuffle` is set, shared out under DDP."""

    def __init__(self, *tensors: Tensor, batch_size: int = BATCH, shuffle: bool = False) -> None:
        super().__init__()
        self.dataset, self.batch_size, self.shuffle = TensorDataset(*tensors), batch_size, shuffle

    def train_dataloader(self) -> DataLoader:
        if self.shuffle or self.trainer is None or self.trainer.world_size == 1:
            return DataLoader(self.dataset, batch_size=self.batch_size, shuffle=self.shuffle)
        sampler = DistributedSampler(self.dataset, shuffle=False)  # Lightning's own would shuffle
        return DataLoader(self.dataset, batch_size=self.batch_size, sampler=sampler)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.dataset, batch_size=self.batch_size)

    test_dataloader = predict_dataloader = val_dataloader


@dataclass(frozen=True)
class Bad:
    """Bad data and what then happens.

    Attributes:
        what: Name of the case.
        data: Makes the data.
        refusal: Type and message of the error, where `fit` refuses.
        warning: Message of the warning, where `fit` only warns.
        finite: Whether the weights are finite after the fit; None where no step is taken.
    """

    what: str
    data: Callable[[], LightningDataModule]
    refusal: tuple[type[Exception], str] | None = None
    warning: str | None = None
    finite: bool | None = None


@dataclass(frozen=True)
class Entry:
    """One public name, the toy run that shows it, and what theory says of it.

    Attributes:
        name: The public name.
        make: Takes a folder of the test's own and the number of processes that share a global batch; two calls
            return equal runs.
        configs: Bundled configs that show it.
        reload: Arguments that `load_from_checkpoint` needs beside the file.
        bad: Bad inputs with their outcome.
        skips: What theory or Lightning rules out, each with the reason: a subset of `PROMISES`.
        variant: What tells this entry from others of the same name.
        refused_in_two: Pattern of the sentence that refuses a second process, where one does.
    """

    name: str
    make: Callable[[Path, int], Parts]
    configs: tuple[str, ...] = ()
    reload: Callable[[], dict[str, Any]] = dict
    bad: tuple[Bad, ...] = ()
    skips: dict[str, str] = field(default_factory=dict)
    variant: str = ""
    refused_in_two: str = ""

    @property
    def id(self) -> str:
        """What tests call it."""
        return f"{self.name}-{self.variant}" if self.variant else self.name

    def __post_init__(self) -> None:
        if unknown := set(self.skips) - PROMISES:
            raise ValueError(f"skips={sorted(unknown)} of {self.name} are none of {sorted(PROMISES)}.")


PROMISES = frozenset({"validates", "tests", "predicts", "bf16", "accumulates", "resumes_mid_epoch", "ddp_equal"})


def toy_tensors() -> tuple[Tensor, Tensor]:
    """Inputs `(EXAMPLES, FEATURES)` and the labels that a linear rule gives them."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(EXAMPLES, FEATURES, generator=generator)
    return inputs, (inputs @ torch.randn(FEATURES, CLASSES, generator=generator)).argmax(dim=1)


def toy_network() -> MLP:
    """The same small network in each call."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return MLP(FEATURES, [6], CLASSES)


def narrow() -> ToyData:
    inputs, labels = toy_tensors()
    return ToyData(inputs[:, 1:], labels)


def unknown_label() -> ToyData:
    inputs, labels = toy_tensors()
    return ToyData(inputs, labels + 1)


def empty() -> ToyData:
    inputs, labels = toy_tensors()
    return ToyData(inputs[:0], labels[:0])


def nan(*rows: int) -> Callable[[], ToyData]:
    def data() -> ToyData:
        inputs, labels = toy_tensors()
        return ToyData(inputs.index_fill(0, torch.tensor(rows), torch.nan), labels)

    return data


FROM_TORCH = (
    Bad("narrow inputs", narrow, (RuntimeError, r"shapes cannot be multiplied \(8x3 and 4x6\)")),
    Bad("unknown label", unknown_label, (IndexError, "Target 3 is out of bounds")),
)
NONE_OF_OURS = "Lightning resumes in mid-epoch only with a stateful loader; the plain one starts its epoch again"
