"""`patchcore fetch`: download a data set from its owners."""

import argparse
import sys
from pathlib import Path

from patchcore.commands.options import Parser, new_place
from patchcore.data.fetch import SOURCES, fetch, find_source
from patchcore.errors import printable


def main(arguments: list[str] | None = None) -> None:
    """Entry point: `patchcore fetch NAME`."""
    parser = Parser(
        prog="patchcore fetch",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Download a data set from its owners, check it, and unpack it to DIR/NAME.\n"
        "An interrupted download continues with the same command.",
        epilog="data sets and their licences:\n"
        + "\n".join(f"  {name:8} {source.licence}" for name, source in SOURCES.items()),
    )
    parser.add_argument("name", metavar="NAME", help="name of the data set, as in data=NAME")
    parser.add_argument(
        "--root",
        type=new_place,
        default=Path("data"),
        metavar="DIR",
        help="folder to download to (default: data)",
    )
    parser.add_argument("--category", help="only this category (mvtec)")
    parser.add_argument("--url", help="address of a copy of the archive")
    parser.add_argument("--sha256", metavar="HEX", help="expected checksum of the archive")
    options = parser.parse_args(arguments)
    source = find_source(options.name)
    print(f"{options.name}: from {source.page}\nlicence: {source.licence}", flush=True)
    root = options.root
    try:
        fetched = fetch(options.name, root, options.category, options.url, options.sha256)
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command continues")
    if fetched.sha256 is None:
        print(printable(f"{fetched.folder} is there already"))
        return
    if fetched.verified:
        print(f"SHA-256 {fetched.sha256}, as it should be")
    else:
        print(f"SHA-256 {fetched.sha256}; none is known to compare it with")
    used = f"data={options.name} data.root={root / options.name}"
    print(printable(f"{fetched.folder}: use it with {used}"))
