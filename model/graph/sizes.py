"""How large the network is. Apart from the network, since a manifest says it and is read without TensorFlow."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class NetworkConfig(BaseModel):
    """Sizes of the network. `precision` is of the training's products alone; what is served is float32."""

    sequence: bool = True
    """Whether the ring is read. Without it the network is its head alone, at a small part of the price."""
    units: Annotated[int, Field(ge=1, le=512)] = 48
    embed: Annotated[int, Field(ge=1, le=64)] = 8
    dense: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = (64, 32)
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    wide_l2: Annotated[float, Field(ge=0.0)] = 1e-5
    seed: int = 0
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    """Of the matrix products of a training, for a GPU: weights, the last layer and the loss stay float32. float16 has a
    scaled loss, lest small gradients vanish."""
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _as_it_was_called(cls, data: Any) -> Any:
        """Manifests of earlier versions say `mixed_precision`, which was bfloat16."""
        if isinstance(data, dict) and "mixed_precision" in data:
            named = {name: value for name, value in data.items() if name != "mixed_precision"}
            return {"precision": "mixed_bfloat16" if data["mixed_precision"] else "float32", **named}
        return data


def without_sequence(config: NetworkConfig) -> NetworkConfig:
    """The same network, blind to the ring."""
    return config.model_copy(update={"sequence": False})
