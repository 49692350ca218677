"""Which precisions a version is exported in, and what is made smaller for each: pure data, read without TensorFlow.

    float32        everything as it is
    float16        the matrices of the network as float16, computed in float32
    int8-dynamic   the matrices as int8, a scale a channel; activations are quantised as they come
    int8           the same, and what the GRU multiplies and gives, too, by scales that are found on given rows

Only the network's matrix products are touched. What is computed from the record stays float32, and so do the forest's
questions: a threshold moved by a rounding sends a customer to another leaf. A converter's own switches know no such
border (`optimizations=[DEFAULT]` quantises whatever a gather reads), so recipes name operations.

`int8` finds scales for the GRU alone. Its states lie between -1 and 1, and its entries are few figures. The head reads
the features: one scale for columns that reach from -8 to 8 is coarse for most of them, a row beyond the given ones is
clipped, and a logit in 255 steps is no probability. With scales for the head, too, half of the logits of a model of
random weights were .2 off, one 1.3; for the GRU alone .008 and .1, and the file is no larger.

There it has one scale a matrix, not one a channel: the GRU is unrolled, a step's bias has scales of its own, and with
768 channels they and their zero points (twelve bytes each) were 300 KB of a file of 820. cdnow's AUROC and largest
difference are the same with one.
"""

from typing import Any

Recipe = list[dict[str, Any]]
"""As ai-edge-quantizer reads it."""

PRECISIONS = ("float32", "float16", "int8-dynamic", "int8")
OFF_MAX = {"float32": 0.01, "float16": 0.02, "int8-dynamic": 0.1, "int8": 0.1}
"""Between a file's probabilities and its version's: what is farther off is not written. In float32 that is a figure
whose last bit takes another leaf of a tree; without it, 1e-6."""


def recipe(precision: str) -> Recipe:
    """Of one of PRECISIONS; empty for float32."""
    return RECIPES[precision]


def _weights(bits: int, dtype: str = "INT") -> dict[str, Any]:
    granularity = "CHANNELWISE" if dtype == "INT" else "TENSORWISE"
    return {"num_bits": bits, "symmetric": True, "granularity": granularity, "dtype": dtype}


RECURRENT = "/gru"
"""In the names of what the GRU's products give (`model/graph/network.py`)."""


def _of_products(algorithm: str, names: str = ".*", **config: Any) -> Recipe:
    return [
        {
            "regex": names,
            "operation": "FULLY_CONNECTED",
            "algorithm_key": algorithm,
            "op_config": {"skip_checks": False, "min_weight_elements": 0, **config},
        }
    ]


_INTEGER: dict[str, Any] = {
    "weight_tensor_config": _weights(8),
    "compute_precision": "INTEGER",
    "explicit_dequantize": False,
}
DYNAMIC = _of_products("min_max_uniform_quantize", **_INTEGER)
RECIPES: dict[str, Recipe] = {
    "float32": [],
    "float16": _of_products(
        "float_casting",
        weight_tensor_config=_weights(16, "FLOAT"),
        compute_precision="FLOAT",
        explicit_dequantize=True,
    ),
    "int8-dynamic": DYNAMIC,
    "int8": [
        *DYNAMIC,
        *_of_products(
            "min_max_uniform_quantize",
            RECURRENT,
            activation_tensor_config={
                "num_bits": 8,
                "symmetric": False,
                "granularity": "TENSORWISE",
                "dtype": "INT",
            },
            **_INTEGER | {"weight_tensor_config": {**_weights(8), "granularity": "TENSORWISE"}},
        ),
    ],
}
