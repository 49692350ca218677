"""The error tree of models: every way in which a model cannot be had, and what to do about each.

    EbbtideError
    └── ModelError                 names the model; the one that is running stays
        ├── ModelMissing           nothing there, or a file of it is gone        crash at start / keep the running one
        ├── ModelDamaged           manifest unreadable, checksum wrong, graph    crash at start / keep the running one
        │                          will not load: it is not what was published
        ├── ModelForeign           made for another record layout                crash at start / keep the running one
        ├── ModelUntrusted         would do more than compute, or is not signed  crash at start / keep the running one
        ├── ModelRefused           not good enough to be published               training ends, nothing is written
        └── ModelUnwritable        cannot be published here (disk, rights)       free space, publish again

"crash at start" only when no lower version is good: a starting worker takes the highest good one (`serving/slot.py`).
None of them is worth a retry by itself: a damaged model stays damaged until somebody publishes another
version.
"""

from ebbtide.featurestore.errors import EbbtideError


class ModelError(EbbtideError):
    """Anything that keeps a model from being published or served. The message names the model."""


class ModelMissing(ModelError):
    """There is no model at that place, or one of its files is gone."""


class ModelDamaged(ModelError):
    """What lies there is not what was published: unreadable manifest, wrong checksum, a graph that will not load."""


class ModelForeign(ModelError):
    """The model was trained for another record layout; its numbers would mean something else."""


class ModelUntrusted(ModelError):
    """It would do more than compute (an op that reads, writes or calls out), brings files of its own, or has no good
    signature where one is asked for. It was not loaded."""


class ModelRefused(ModelError):
    """The model does worse than a baseline it must beat: it is not published."""


class ModelUnwritable(ModelError):
    """The model could not be written: disk full, no rights, version taken. Nothing half-written is left visible."""
