"""How large the network is. Apart from the network, since a manifest says it and is read without TensorFlow."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class NetworkConfig(BaseModel):
    """Sizes of the network. `mixed_precision` (bfloat16) is for training on a GPU; what is served is float32."""

    sequence: bool = True
    """Whether the ring is read. Without it the network is its head alone, at a small part of the price."""
    units: Annotated[int, Field(ge=1, le=512)] = 48
    embed: Annotated[int, Field(ge=1, le=64)] = 8
    dense: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = (64, 32)
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    wide_l2: Annotated[float, Field(ge=0.0)] = 1e-5
    seed: int = 0
    mixed_precision: bool = False
    model_config = ConfigDict(frozen=True, extra="forbid")


def without_sequence(config: NetworkConfig) -> NetworkConfig:
    """The same network, blind to the ring."""
    return config.model_copy(update={"sequence": False})
