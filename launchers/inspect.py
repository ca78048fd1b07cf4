"""`contentv inspect PATH`: what is in latent shards, a run, a checkpoint, or published weights.

Counts, shapes and identities, after sizes and digests were compared; --sheet draws what latent shards hold.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    from .command_line import call

    return call(run, argv)


def run(argv: Sequence[str]) -> int:
    options = parse(argv)
    # Only now: torch takes seconds, and a mistake should be told at once.
    from ..engine.inspection import draw_sheet, inspect
    from ..engine.writable import check_file

    if options.sheet:
        check_file("--sheet", options.sheet)
    facts = inspect(options.path)
    if options.sheet:
        if facts["kind"] != "latent shards":
            raise ValueError(f"--sheet draws latent shards; {options.path} holds a {facts['kind']}")
        draw_sheet(Path(options.path), Path(options.sheet))
    if options.json:
        print(json.dumps(facts))
    else:
        import yaml

        print(yaml.safe_dump(json.loads(json.dumps(facts)), sort_keys=False), end="")
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="contentv inspect", description=__doc__.split(": ", 1)[1])
    parser.add_argument("path", metavar="PATH", help="latent shards, a run, a checkpoint, or published weights")
    parser.add_argument("--sheet", metavar="FILE.png", help="latent shards: a contact sheet of the commonest captions")
    parser.add_argument("--json", action="store_true", help="print one JSON value on stdout")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
