"""A published version's graph made again from its manifest, its spec and its weights, in a form that can be converted.

    manifest.json  ──▶ spec, sizes, calibrators ─┐
    variables/     ──▶ weights by their place ───┴─▶ Served, GRU unrolled, figures in float32

The SavedModel itself holds a loop over any number of rows and differences in float64, of which LiteRT has neither. The
same lines that made it make this one: there is no second implementation of a feature or of the network.
"""

from pathlib import Path

import numpy as np
import tensorflow as tf

from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import Spec
from ebbtide.model.errors import ModelDamaged
from ebbtide.model.graph.forest import Forest
from ebbtide.model.graph.hazard import Hazard
from ebbtide.model.graph.head import Head
from ebbtide.model.graph.network import build_network
from ebbtide.model.graph.served import Served
from ebbtide.model.graph.sizes import NetworkConfig
from ebbtide.model.graph.standard import logs
from ebbtide.model.serving.manifest import Manifest

WEIGHTS = "variables/variables"


def rebuilt(path: Path, manifest: Manifest) -> Served:
    """The graph of the verified version in `path`. Raises ModelDamaged where its weights are not those that its
    manifest speaks of."""
    spec, trained = manifest.parsed_spec(), manifest.train_config
    sizes = trained.network if trained else NetworkConfig()
    sizes = sizes.model_copy(update={"precision": "float32", "dropout": 0.0})
    try:
        stored = set(tf.train.load_checkpoint(str(path / WEIGHTS)).get_variable_to_shape_map())
        parts = {tuple(name.split("/")[:3]) for name in stored}
        heads = []
        for n in range(len(spec.target_names)):
            calibrator = manifest.heads[n].calibrator if manifest.heads else manifest.calibrator
            forest = Forest.empty() if ("_heads", str(n), "forest") in parts else None
            hazard = _hazard(spec.only_target(n), len(logs(spec)))
            timed = ("_heads", str(n), "hazard") in parts
            network = build_network(spec, sizes, unrolled=True)
            heads.append(Head(network, calibrator, forest, hazard=hazard if timed else None))
        served = Served(Layout(spec), heads, wide="float32")
        found = tf.train.Checkpoint(root=served).read(str(path / WEIGHTS))
        found.assert_existing_objects_matched().expect_partial()
    except (AssertionError, KeyError, ValueError, tf.errors.OpError) as error:
        raise ModelDamaged(
            f"model {manifest.title} cannot be taken apart: its weights are not those of the network that its manifest "
            f"describes: {str(error).splitlines()[0]}",
            hint="train it again with this release",
        ) from error
    return served


def _hazard(spec: Spec, columns: int) -> Hazard:
    """Of the right shapes; its numbers are restored."""
    horizons = spec.horizons_ms
    steps = len(horizons) - 1
    kernel, bias = np.zeros((columns + 1, steps), np.float32), np.zeros(steps, np.float32)
    return Hazard(horizons, horizons.index(spec.horizon_ms), spec.churn_is_absence, kernel, bias)
