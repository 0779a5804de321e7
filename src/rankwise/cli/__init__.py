"""The command line: one file per command, each a `run(arguments) -> exit status`."""

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version

from rankwise.errors import RankwiseError, nearest, not_installed

# name -> (module, what it does); a module is imported when its command is called
COMMANDS = {
    "train": ("rankwise.cli.train", "train an adapter as a config file says, evaluate it and save it"),
    "evaluate": ("rankwise.cli.evaluate", "compute the metrics of a finished run again, from its files"),
    "plan": ("rankwise.cli.plan", "say what a run will train and how much memory it takes, without loading the model"),
    "compare": ("rankwise.cli.compare", "compare methods at equal budget, over tasks and seeds, and say which to take"),
    "watch": ("rankwise.cli.watch", "show budget, ranks and loss of a run while another process trains it"),
    "inspect": ("rankwise.cli.inspect", "show ranks and frozen projections of a run, or the layers of a model"),
    "export": ("rankwise.cli.export", "write a run or an adapter as a plain LoRA folder, for PEFT, vLLM and others"),
    "verify": ("rankwise.cli.verify", "check whether PEFT, vLLM, llama.cpp and others read a LoRA folder as meant"),
    "convert": ("rankwise.cli.convert", "turn an adapter, PEFT's or loralib's too, into another method's, exactly"),
    "merge": (
        "rankwise.cli.merge",
        "write a plain model with an adapter's updates in its weights, and measure the error",
    ),
    "report": ("rankwise.cli.report", "write one HTML page of runs, or of a comparison"),
    "demo": ("rankwise.cli.demo", "run a small real job on a model and data that install with pip"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0, 1 (it ran, and the answer is no), 2 (it could not run) or 130 (Ctrl-C)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(f"rankwise {version('rankwise')}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"rankwise: unknown command {name!r}.{nearest(name, COMMANDS)}\n\n{usage()}", file=sys.stderr)
        return 2
    try:
        run: Callable[[list[str]], int] = import_module(COMMANDS[name][0]).run
    except ModuleNotFoundError as missing:
        package = (missing.name or "rankwise").partition(".")[0]
        if package == "rankwise":
            raise
        print(f"rankwise: {not_installed(name, package, 'train')}", file=sys.stderr)
        return 2
    try:
        return run(rest)
    except BrokenPipeError:
        # whoever read the output has gone (`| head`); Python would complain once more when it flushes at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except RankwiseError as error:
        print(f"rankwise {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        goes_on = " The same command with --resume goes on from the last checkpoint." if name == "train" else ""
        print(f"rankwise {name}: interrupted.{goes_on}", file=sys.stderr)
        return 130  # as a shell reports Ctrl-C
    except SystemExit as stop:  # --help of a command
        return int(stop.code or 0)


def usage() -> str:
    """The list of commands."""
    lines = [f"  {name:10}{what}" for name, (_, what) in COMMANDS.items()]
    ways = ["usage: rankwise COMMAND ...", "       rankwise COMMAND --help", "       rankwise --version"]
    return "\n".join([*ways, "", *lines, "", "first steps: rankwise demo"])
