"""The error tree of the floor, and the root of every error Ebbtide raises on purpose.

    EbbtideError                 what went wrong, and `hint`: what to do next
    ├── SpecError                a feature spec, mapping or event file does not fit        crash at start
    ├── LayoutError              state written under another layout                        crash at start
    ├── JobFailed                whoever worked on a part of a log ended without an answer  the command ends
    └── StoreError
        ├── StoreUnavailable     the server is away or refuses for now                     retry
        ├── StoreMisconfigured   the server is set up in a way that would lose state       crash at start
        └── Fenced               another owner moved the partition                         drop caches, reopen

Whoever catches one of these knows from its class alone whether to retry, to reopen or to stop.
"""


class EbbtideError(Exception):
    """Root of the tree. `hint` is one sentence that tells the operator what to do."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message} ({self.hint})" if self.hint else message


class SpecError(EbbtideError):
    """The spec, the mapping or the data it is used with does not fit. Every problem is listed at once."""


class LayoutError(EbbtideError):
    """Stored state or a model belongs to another record layout."""


class StoreError(EbbtideError):
    """Anything the feature store says no to."""


class StoreUnavailable(StoreError):
    """The store did not answer, or refused for now: nothing was changed for sure or at all; ask again."""


class StoreMisconfigured(StoreError):
    """The store answers, but is set up so that state would be lost (eviction, wrong password, read-only)."""


class Fenced(StoreError):
    """The partition's checkpoint is not the one this owner last saw: nothing was written."""
