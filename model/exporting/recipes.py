"""Which precisions a version is exported in, and what is made smaller for each: pure data, read without TensorFlow.

    float32        everything as it is
    float16        the matrices of the network as float16, computed in float32
    int8-dynamic   the matrices as int8, a scale a channel; activations are quantised as they come
    int8           the matrices and what they multiply as int8, by scales that are found on given rows

Only the network's matrix products are touched. What is computed from the record stays float32, and so do the forest's
questions: a threshold moved by a rounding sends a customer to another leaf. A converter's own switches know no such
border (`optimizations=[DEFAULT]` quantises whatever a gather reads), so recipes name operations.
"""

from typing import Any

Recipe = list[dict[str, Any]]
"""As ai-edge-quantizer reads it."""

PRECISIONS = ("float32", "float16", "int8-dynamic", "int8")
OFF_MAX = {"float32": 0.01, "float16": 0.02, "int8-dynamic": 0.1, "int8": 0.25}
"""Between a file's probabilities and its version's: what is farther off is not written. In float32 that is a figure
whose last bit takes another leaf of a tree; without it, 1e-6."""


def recipe(precision: str) -> Recipe:
    """Of one of PRECISIONS; empty for float32."""
    return RECIPES[precision]


def _weights(bits: int, dtype: str = "INT") -> dict[str, Any]:
    granularity = "CHANNELWISE" if dtype == "INT" else "TENSORWISE"
    return {"num_bits": bits, "symmetric": True, "granularity": granularity, "dtype": dtype}


def _of_products(algorithm: str, **config: Any) -> Recipe:
    return [
        {
            "regex": ".*",
            "operation": "FULLY_CONNECTED",
            "algorithm_key": algorithm,
            "op_config": {"skip_checks": False, "min_weight_elements": 0, **config},
        }
    ]


RECIPES: dict[str, Recipe] = {
    "float32": [],
    "float16": _of_products(
        "float_casting",
        weight_tensor_config=_weights(16, "FLOAT"),
        compute_precision="FLOAT",
        explicit_dequantize=True,
    ),
    "int8-dynamic": _of_products(
        "min_max_uniform_quantize",
        weight_tensor_config=_weights(8),
        compute_precision="INTEGER",
        explicit_dequantize=False,
    ),
    "int8": _of_products(
        "min_max_uniform_quantize",
        activation_tensor_config={
            "num_bits": 8,
            "symmetric": False,
            "granularity": "TENSORWISE",
            "dtype": "INT",
        },
        weight_tensor_config=_weights(8),
        compute_precision="INTEGER",
        explicit_dequantize=False,
    ),
}
