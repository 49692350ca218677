"""The curves of a training as TensorBoard reads them, without TensorBoard.

TensorFlow no longer brings TensorBoard along, and its `tf.summary.scalar` is TensorBoard's; what writes event files is
TensorFlow's own. So only whoever looks at the curves installs the viewer.
"""

from pathlib import Path
from typing import Any

import tensorflow as tf


class Curves:
    """Scalars by epoch in `folder/<run>`; with `folder` None, nowhere."""

    def __init__(self, folder: Path | None, run: str) -> None:
        self._writer: Any = None if folder is None else tf.summary.create_file_writer(str(folder / run))
        self._scalar = tf.compat.v1.SummaryMetadata()
        self._scalar.plugin_data.plugin_name = "scalars"

    def add(self, epoch: int, **values: float) -> None:
        """One point of each curve. Raises OSError-like `tf.errors.OpError` when the folder cannot be written."""
        if self._writer is None:
            return
        with self._writer.as_default():
            for name, value in values.items():
                tf.summary.write(name, tf.constant(value, tf.float32), step=epoch, metadata=self._scalar)
        self._writer.flush()
