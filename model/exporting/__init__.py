"""A published version as a file for another runtime: LiteRT, on a device that has no TensorFlow. It reads versions and
changes none; what the file says is held against the version that it was made of.
"""
