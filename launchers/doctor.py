"""`contentv doctor`: can training work here, and what is missing; exit status 1 if it cannot.

Hardware, versions, the kernels that would run, optional parts with the command that installs each, and the speed of the
disk the run folder is on.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

CANNOT_TRAIN = 1


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    # Not through command_line.call, as the others: it needs PyYAML, and this must answer where anything is missing.
    options = parse(argv)
    from ..engine.doctor import can_train, examine

    findings = []
    section = None
    for finding in examine(Path(options.run_folder)):
        findings.append(finding)
        if not options.json:
            if finding.section != section:
                section = finding.section
                print(section)
            remedy = f"  -> {finding.remedy}" if finding.remedy else ""
            print(f"  {finding.status:<8} {finding.name:<22} {finding.found}{remedy}")
    works = can_train(findings)
    if options.json:
        print(json.dumps({"can_train": works, "findings": [vars(finding) for finding in findings]}))
    else:
        print("training can work here" if works else "training cannot work here: see what is broken")
    return 0 if works else CANNOT_TRAIN


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="contentv doctor", description=__doc__.split(": ", 1)[1])
    parser.add_argument("--run-folder", default="runs", help="whose disk is tried; default: runs")
    parser.add_argument("--json", action="store_true", help="print one JSON value on stdout")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
