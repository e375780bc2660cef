"""Print the table of all inputs, or of those of the named kinds: `python -m tests.corpus masks`."""

import sys
import tempfile
from pathlib import Path

from tests.corpus import CASES, observe, row


def main(kinds: list[str]) -> int:
    """Return the number of inputs whose outcome is another than expected."""
    wrong = 0
    chosen = [case for case in CASES if not kinds or case.kind in kinds]
    for case in chosen:
        with tempfile.TemporaryDirectory() as folder:
            found = observe(case, Path(folder))
        wrong += not found.expected_by(case)
        print(row(case, found).replace(folder, "…"), flush=True)
    print(f"{len(chosen)} inputs, {wrong} of them not as expected")
    return wrong


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
