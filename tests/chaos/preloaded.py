"""TensorFlow as a worker imports it: before `worker_main`, whose other imports would bring Keras."""

from ebbtide.ops.tensorflow import without_keras

with without_keras():
    import tensorflow as tf  # noqa: F401 -- into the fork server
