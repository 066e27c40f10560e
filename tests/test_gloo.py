import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.demos.boring_classes import BoringModel

from tests.gloo import GlooPool, WorkerError, ddp_trainer_kwargs

pytestmark = pytest.mark.ddp


def _sum_of_ranks(rank: int, world_size: int, offset: int) -> float:
    total = torch.tensor(float(rank + offset))
    dist.all_reduce(total)
    return total.item()


def _one_rank_raises(rank: int, world_size: int) -> None:
    if rank == 1:
        raise ValueError("rank one has had enough")
    dist.barrier()


def _fit(rank: int, world_size: int, folder: str) -> tuple[int, torch.Tensor, torch.Tensor]:
    seed_everything(rank, verbose=False)
    model = BoringModel()
    before = model.layer.weight.detach().clone()
    trainer = Trainer(
        **ddp_trainer_kwargs(),
        max_steps=3,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(model)
    return trainer.world_size, before, model.layer.weight.detach()


def test_collectives_reach_both_ranks(gloo: GlooPool) -> None:
    assert gloo.run(_sum_of_ranks, 10) == [21.0, 21.0]


def test_worker_traceback_reaches_the_test_and_the_pool_survives(gloo: GlooPool) -> None:
    with pytest.raises(WorkerError, match="rank one has had enough"):
        gloo.run(_one_rank_raises)
    assert gloo.run(_sum_of_ranks, 0) == [1.0, 1.0]


@pytest.mark.parametrize("repeat", [1, 2])
def test_trainer_fits_inside_the_pool(gloo: GlooPool, tmp_path: str, repeat: int) -> None:
    (world, before0, after0), (_, before1, after1) = gloo.run(_fit, str(tmp_path))
    assert world == 2
    assert not torch.equal(before0, before1)
    assert not torch.equal(before0, after0)
    torch.testing.assert_close(after0, after1, rtol=0, atol=0)
