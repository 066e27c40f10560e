"""Run by `test_killed` in a process of its own: trains each entry in a child that kills itself inside an epoch."""

import os
import signal
import sys
from pathlib import Path

from tests.battery.test_resume import MID_EPOCH, at_step, last_step
from tests.battery.trainers import Interrupt, toy_trainer
from tests.matrix import entry


class Kill(Interrupt):
    """Ends the process with no chance to clean up."""

    def _raise(self, trainer: object, *args: object) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def _train(name: str, folder: Path) -> None:
    parts = entry(name).make(folder, 1)
    kill = Kill("on_train_batch_start", MID_EPOCH + 2)
    trainer = toy_trainer(
        parts, folder, at_step(folder / "killed", last_step(entry(name))), kill, enable_checkpointing=True
    )
    trainer.fit(parts.module, datamodule=parts.data)


if __name__ == "__main__":
    for name in sys.argv[2:]:
        child = os.fork()
        if child == 0:
            _train(name, Path(sys.argv[1]) / name)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            sys.exit(f"{name} ended with status {status} before it was killed")
