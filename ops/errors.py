"""The error tree of operations: what stops a command before or while it runs the stack around Ebbtide.

    EbbtideError                    (featurestore.errors: message and `hint`)
    └── OpsError                    anything `ops` refuses to go on with              crash, exit code ≠ 0
        ├── WorkerFailed            a worker that a command brought did not start      crash; carries its last words
        ├── SettingsError           a setting is wrong, or two do not fit             crash, names them all
        └── StackError              the local Kafka or Valkey                         crash
            ├── RegistryUnreachable the first use could not download Kafka            crash; a second try may pass
            ├── ServerFailed        a server ended or did not answer in time          crash; carries its log's tail
            └── StackGone           the process that keeps the servers is away        crash

Each says in `hint` which setting or folder the operator can change.
"""

from ebbtide.featurestore.errors import EbbtideError


class OpsError(EbbtideError):
    """Anything the operations layer says no to."""


class WorkerFailed(OpsError):
    """A worker process of ours did not get ready, or ended by itself. The message carries what it said."""


class SettingsError(OpsError):
    """A setting, or a relation between settings. Every problem is named at once."""


class StackError(OpsError):
    """The local stack cannot be started, stopped or reached."""


class RegistryUnreachable(StackError):
    """Kafka's jars are not in the cache and the package registry did not give them."""


class ServerFailed(StackError):
    """A local server ended by itself or did not answer before its deadline. The message ends in its log's tail."""


class StackGone(StackError):
    """The keeper of the local servers was ended from outside: its servers are gone with it."""
