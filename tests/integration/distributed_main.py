"""One task of a cluster: train on shards by a strategy, and say what came of it.

    python distributed_main.py STRATEGY FOLDER OUT DROPOUT EPOCHS BATCH [BACKUP|- [PRUNE [stream]]]

With two CPUs for `mirrored`, with one for `alone`: our own step in one process. With PRUNE, such a share of the weights
is pruned, and steps read the shards as a stream where they can; with `stream`, where they cannot, too.
"""

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from ebbtide.model.config import TrainConfig
from ebbtide.model.fitting.distribute import leads, serve, strategy_of
from ebbtide.model.graph.sizes import NetworkConfig


def main() -> None:
    asked, folder, out, dropout, epochs, batch, *more = sys.argv[1:]
    backup, prune, always = [*more, *("-", "0", "")[len(more) :]]
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
            "backup_dir": None if backup == "-" else backup,
            "prune": float(prune),
            "prune_epochs": 1,
        }
    )
    serve(config.strategy)
    strategy_of(config.strategy)  # before TensorFlow does anything else
    from ebbtide.model.examples.shards import Shards, read_shards
    from ebbtide.model.fitting.fit import Trainer, logits
    from ebbtide.model.fitting.prune import masked
    from tests.integration.test_train import demo_spec

    rows = read_shards(Path(folder))
    odd = rows.customer % 2 == 1
    trainer = Trainer(demo_spec(), config, int((~odd).sum()))
    if config.prune:
        streams = strategy != "parameter_server" or always == "stream"
        found = trainer.fit(rows, int(epochs), stream=Shards(Path(folder)) if streams else None)
        last = logits(found.network, rows.inputs)
    else:
        found = trainer.fit(rows.take(~odd), int(epochs), watched=rows.take(odd))
        last = found.watched[-1]
    zeros = [float((np.asarray(weights) == 0).mean()) for weights in masked(found.network)]
    said = {"loss": found.loss, "logits": last.astype(float).tolist(), "taken": found.taken, "zeros": zeros}
    if leads(config.strategy):
        Path(out).write_text(json.dumps(said))


if __name__ == "__main__":
    main()
