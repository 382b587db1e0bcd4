"""Run all benches, print their tables, and write them to tests/bench/results/ with hardware, versions and date."""

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench.machine import machine

RESULTS = Path(__file__).with_name("results")
BENCHES = (
    "indexing",
    "nothing_kept",
    "memory",
    "projections",
    "scoring",
    "incremental",
    "search",
    "kills",
    "damage",
    "faults",
    "power",
    "interrupts",
    "demo",
    "conformance",
    "fuzz",
    "games",
    "truth",
    "truth_first",
    "candidates",
    "certificates",
    "near_copies",
    "facts",
    "audit",
    "large",
)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("benches", nargs="*", default=list(BENCHES), metavar="BENCH", help=f"of {', '.join(BENCHES)}")
    parser.add_argument("--keep", action="store_true", help="write the results beside the benches")
    chosen = parser.parse_args()
    unknown = set(chosen.benches) - set(BENCHES)
    if unknown:
        parser.error(f"no bench named {', '.join(sorted(unknown))}")
    found = {"machine": machine(), "date": datetime.now(UTC).date().isoformat()}
    print(json.dumps(found, indent=1))
    for name in chosen.benches:
        module = __import__(f"tests.bench.{name}", fromlist=["rows"])
        print(f"\n{module.__doc__.splitlines()[0]}\n", flush=True)
        found[name] = []
        for row in module.rows():
            found[name].append(row)
            print("  " + "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if chosen.keep:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{found['date']}-{found['machine']['device'].replace(' ', '-')}.json"
        print(f"\nwritten to {_kept(path, found)}", file=sys.stderr)


def _kept(path: Path, found: dict[str, Any]) -> Path:
    """Written beside the other benches of the same day and machine; a file of another machine stays as it is."""
    number = 1
    while path.exists():
        before = json.loads(path.read_text())
        if before["machine"] == found["machine"]:
            found = before | found
            break
        number += 1
        path = path.with_name(f"{path.stem.removesuffix(f'-{number - 1}')}-{number}.json")
    path.write_text(json.dumps(found, indent=1) + "\n")
    return path


if __name__ == "__main__":
    main()
