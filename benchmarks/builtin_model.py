"""Makes anew what follows from the checkpoint of the built-in model: bundle, judges' figures, strips, page of results.

    python -m benchmarks.builtin_model                        # after a change of the export, in about half an hour
    python -m benchmarks.builtin_model --train build/builtin  # trains the checkpoint first, or goes on with it

Flags after `--train FOLDER` are those of `mutoscope_export.demo.make`, such as `--start-from`. A judge whose goal is
missed fails this command too, after all the others have run: look at the strips, and commit nothing that got worse.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from mutoscope_export.demo.make import BUNDLE, BUNDLE_OPTIONS, CHECKPOINT, REPOSITORY
from mutoscope_export.export import export_checkpoint

RESULTS = REPOSITORY / "benchmarks/results"
PROMPTS = ("benchmarks.prompt_following", "--count", "240")
PICTURES = ("benchmarks.picture_following", "--text-count", "240", "--checkpoint", CHECKPOINT)
JUDGES = (
    (*PROMPTS, "--output", RESULTS / "prompt_following.json"),
    (*PROMPTS, "--precision", "int8", "--output", RESULTS / "prompt_following_int8.json"),
    (*PICTURES, "--output", RESULTS / "picture_following.json"),
)
WRITERS = (
    ("benchmarks.strip", REPOSITORY / "docs/strip.webp"),
    ("benchmarks.strip", REPOSITORY / "docs/strip-pictures.webp", "--from-pictures"),
    ("benchmarks.results_page",),
)


def run_each(commands: Iterable[tuple[str | Path, ...]]) -> list[str]:
    """Runs modules one after the other, and returns those that failed, as they were called."""
    failed = []
    for module, *arguments in commands:
        command = [sys.executable, "-m", str(module), *map(str, arguments)]
        print(" ".join(command), flush=True)
        if subprocess.run(command, cwd=REPOSITORY, check=False).returncode:
            failed.append(" ".join(command))
    return failed


def main() -> int:
    """Returns 1 when a command failed or a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, metavar="FOLDER", help="train first, with the states in this folder")
    arguments, further = parser.parse_known_args()
    if arguments.train is None:
        if further:
            parser.error(f"only training takes {' '.join(further)}; name its folder with --train")
        export_checkpoint(CHECKPOINT, BUNDLE, BUNDLE_OPTIONS, on_progress=print)
    elif run_each([("mutoscope_export.demo.make", "--work", arguments.train, *further)]):
        return 1
    failed = run_each([*JUDGES, *WRITERS])
    for command in failed:
        print(f"failed, or missed a goal: {command}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
