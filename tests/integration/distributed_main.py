"""One task of a cluster: train on shards by a strategy, and say what came of it. `python distributed_main.py STRATEGY
FOLDER OUT DROPOUT EPOCHS BATCH`; with two CPUs for `mirrored`, with one for `alone`: our own step in one process."""

import json
import sys
from pathlib import Path

import tensorflow as tf

from ebbtide.model.config import TrainConfig
from ebbtide.model.fitting.distribute import leads, serve, strategy_of
from ebbtide.model.graph.sizes import NetworkConfig


def main() -> None:
    asked, folder, out, dropout, epochs, batch, *backup = sys.argv[1:]
    strategy = "mirrored" if asked == "alone" else asked
    if asked == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    network = NetworkConfig(units=4, embed=2, dense=(8,), dropout=float(dropout))
    config = TrainConfig.model_validate(
        {
            "strategy": strategy,
            "epochs_max": int(epochs),
            "batch": int(batch),
            "network": network,
            "backup_dir": backup[0] if backup else None,
        }
    )
    serve(config.strategy)
    strategy_of(config.strategy)  # before TensorFlow does anything else
    from ebbtide.model.examples.shards import read_shards
    from ebbtide.model.fitting.fit import Trainer
    from tests.integration.test_train import demo_spec

    rows = read_shards(Path(folder))
    odd = rows.customer % 2 == 1
    found = Trainer(demo_spec(), config, int((~odd).sum())).fit(
        rows.take(~odd), int(epochs), watched=rows.take(odd)
    )
    last = found.watched[-1].astype(float)
    if leads(config.strategy):
        Path(out).write_text(json.dumps({"loss": found.loss, "logits": last.tolist()}))


if __name__ == "__main__":
    main()
