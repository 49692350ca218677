"""How a model is trained: every number that is a choice, in one frozen object, with the reason beside it."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ebbtide.model.graph.sizes import NetworkConfig

DROPOUT = 0.3
PLACES = {"log_dir", "backup_dir"}
"""Fields that say where something lies, and nothing of what is trained."""


class TrainConfig(BaseModel):
    """Defaults suit logs of a thousand to a million customers on two cores."""

    examples_max: Annotated[int, Field(ge=200)] = 100_000
    """Decision points and snapshots together: about 1.5 KB each."""
    snapshot_every_ms: Annotated[int, Field(ge=1)] | None = None
    """Distance of the dates whose snapshots are examples; None: an eighth of the horizon."""
    rows_a_customer_max: Annotated[int, Field(ge=1)] = 48
    """Decisions, and as many snapshots, of one customer that are learned from."""
    network_rows_max: Annotated[int, Field(ge=200)] = 50_000
    """Examples that one fit learns from: most of the time that training takes."""
    stream_rows_max: Annotated[int, Field(ge=0)] = 0
    """Examples that the network of one fit learns from where they do not fit into memory: all that is labelled goes to
    disk, and the network reads it there; what needs rows at once (trees, the logistic start, scales, calibration, the
    tables) has `examples_max` of it, whole customers drawn by `seed`. 0: all learn from what is held."""
    epochs_max: Annotated[int, Field(ge=1)] = 10
    patience: Annotated[int, Field(ge=1)] = 3
    batch: Annotated[int, Field(ge=8)] = 512
    learning_rate: Annotated[float, Field(gt=0.0)] = 3e-3
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.3
    prune: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Of each matrix of the network the share of weights, the smallest, that become zero once it has been trained."""
    prune_epochs: Annotated[int, Field(ge=1)] = 2
    """Epochs that the others then learn on. What is judged is the pruned network; the recipe is found without."""
    network: NetworkConfig = NetworkConfig(dropout=DROPOUT)
    """`network.precision`: of the training on a GPU; its `seed` is overridden by ours."""
    forest_share: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """How much of the logit is the forest's; None: what cross-fitting finds."""
    refit: bool = True
    """After the evaluation, train the published network again on all that is labelled."""
    alert_rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.10
    """Of the customers who come up for a decision within one horizon, the share that is to get an alert."""
    bootstrap: Annotated[int, Field(ge=20)] = 400
    """Resamplings of customers behind each interval."""
    seed: int = 0
    strategy: Literal["auto", "one_device", "mirrored", "multi_worker", "parameter_server", "tpu"] = "auto"
    """Where the network is trained: see `model/fitting/distribute.py`."""
    log_dir: Path | None = None
    """Where TensorBoard finds the curves; None: nowhere."""
    backup_dir: Path | None = None
    """Where several processes keep how far they are (`model/fitting/backup.py`); None: they begin anew."""
    model_config = ConfigDict(frozen=True, extra="forbid")
