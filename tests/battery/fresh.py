"""Run by `test_checkpoints` in a process of its own: loads each saved module and predicts again."""

import json
import sys
from pathlib import Path

from tests.battery.state import plain
from tests.battery.trainers import toy_trainer
from tests.matrix import entry

if __name__ == "__main__":
    folder, predictions = Path(sys.argv[1]), {}
    for name in sys.argv[2:]:
        parts = entry(name).make(folder, 1)
        module = type(parts.module).load_from_checkpoint(
            folder / f"{name}.ckpt", weights_only=True, **entry(name).reload()
        )
        batches = toy_trainer(parts._replace(callbacks=[]), folder).predict(module, datamodule=parts.data)
        predictions[name] = plain(batches)
    (folder / "predictions.json").write_text(json.dumps(predictions))
