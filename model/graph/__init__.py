"""What is published: the layers from a record's fields to a calibrated probability, in one TensorFlow graph."""
