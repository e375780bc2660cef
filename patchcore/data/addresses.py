"""Addresses of downloads, as messages and notes name them: without what may be secret."""

import re
from urllib.parse import urlsplit

from patchcore.errors import InputError


def shown(url: str) -> str:
    """Return an address without user, password, query and fragment, for messages.

    >>> shown("https://ann:pw@example.org/a.zip?key=1")
    'https://…@example.org/a.zip?…'
    """
    address, *more = re.split("[?#]", url, maxsplit=1)
    return re.sub("^(.*?//)?[^/]*@", r"\1…@", address) + "?…" * bool(more)


def without_secrets(text: str) -> str:
    """Return a text of a server or a library with the addresses in it as `shown`."""
    return re.sub(r"\w+://\S*", lambda found: shown(found[0]), text)


def check_address(url: str) -> None:
    """Raise InputError unless an address is of HTTP, has no password, and is escaped."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # an open bracket, or a port that is no number
        raise InputError(
            "--url: the address should begin with http:// or https:// and a host; its port, if it "
            "has one, is a number"
        ) from None
    if not sound:
        raise InputError(f"--url: {shown(url)} should begin with http:// or https:// and a host")
    if "@" in parts.netloc:
        raise InputError(
            f"--url: {shown(url)}: a user or password in the address is not supported; give an "
            "address that needs none"
        )
    if not re.fullmatch("[!-~]+", url):
        raise InputError(
            f"--url: {shown(url)} holds a character that has to be escaped, such as %20 for a space"
        )
