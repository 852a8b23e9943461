"""`optimum-cli export mutoscope`: the command `mutoscope export` among those of Hugging Face's Optimum.

Optimum imports every file of this namespace when its command starts, so nothing else may be imported here. None of the
folders above may hold an `__init__.py`: they belong to Optimum. Knows no flag: all but the model and the bundle go on
to `mutoscope export` as they are.
"""

from __future__ import annotations

import argparse
import sys

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class MutoscopeExportCommand(BaseOptimumCLICommand):
    """Writes a checkpoint as a Mutoscope bundle; ends with the exit code of `mutoscope export`."""

    COMMAND = CommandInfo("mutoscope", "Export a text-to-video checkpoint as a Mutoscope bundle of ONNX graphs.")

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Adds the arguments to the parser that Optimum made for this command."""
        parser.add_argument(
            "-m", "--model", required=True, help="folder in the Diffusers layout, or a Hugging Face hub id"
        )
        parser.add_argument("bundle", help="folder to write the bundle to")
        parser.add_argument(
            "options", nargs=argparse.REMAINDER, help="any flags of `mutoscope export`, after the bundle"
        )

    def run(self) -> None:
        """Exports the checkpoint."""
        from mutoscope.cli import main

        given = self.args
        sys.exit(main(["export", given.model, given.bundle, *given.options]))


REGISTER_COMMANDS = [(MutoscopeExportCommand, ExportCommand)]
