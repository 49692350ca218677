"""TensorFlow's settings for a process that serves: which device, how many threads, how much GPU memory.

It is the only module that touches TensorFlow's global state, and must be called before the first tensor is
made, for TensorFlow freezes these settings then. It knows nothing of models.

One thread for the operators is the default because it won: the rows of a dispatch are scored in blocks too
small to be worth splitting (see `program.py`), a second thread gains nothing, and the other core belongs to
the event loop, which parses, folds and stores while TensorFlow computes (it releases the GIL).
"""

import logging
from pathlib import Path
from platform import machine

import tensorflow as tf

from ebbtide.model.errors import ModelError

SERVING_THREADS = 1
VECTORS = ("avx", "fma", "amx", "sse4", "f16c")
"""Processor features that XLA and oneDNN choose their kernels by, as Linux names them, by how they begin."""


def hush() -> None:
    """At each load TensorFlow warns that nobody may take a gradient of what we serve. Nobody does (`artifact.py`)."""
    logging.getLogger("absl").setLevel(logging.ERROR)


hush()


def configure(threads: int = SERVING_THREADS) -> str:
    """Set `threads` for the operators (intra-op) and one for the graph; let the GPU's memory grow as needed, so that
    other processes keep theirs. Returns the device that models are placed on, "/GPU:0" or "/CPU:0".

    Raises ModelError when TensorFlow is already running with other settings.
    """
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError as error:
        raise ModelError(
            f"TensorFlow was already running when {threads} threads were asked for: {error}",
            hint="call model.serving.runtime.configure() before any tensor is made",
        ) from None
    return device()


def device() -> str:
    """Where models live: "/GPU:0" when there is one, else "/CPU:0"."""
    return "/GPU:0" if tf.config.list_physical_devices("GPU") else "/CPU:0"


def platform() -> str:
    """What decides the last bits of a score besides the model: TensorFlow's version, and the device that runs it, a
    processor by its vector instructions."""
    gpus = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
    if gpus:
        return f"tensorflow {tf.__version__}, {gpus[0].get('device_name', 'GPU')}"
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:  # not Linux: the architecture has to do
        info = ""
    flags = next(
        (line.partition(":")[2].split() for line in info.splitlines() if line.startswith("flags")), []
    )
    known = " ".join(sorted(flag for flag in flags if flag.startswith(VECTORS)))
    return f"tensorflow {tf.__version__}, {machine()} {known}".strip()


def device_memory_bytes() -> int | None:
    """What TensorFlow holds of the GPU's memory now; None on a CPU, whose memory is the process's."""
    if device() != "/GPU:0":
        return None
    return int(tf.config.experimental.get_memory_info("GPU:0")["current"])
