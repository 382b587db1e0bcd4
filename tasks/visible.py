"""Text of strangers as one line that shows what is in it."""

import re

__all__ = ["reason", "refuse_password", "short", "visible", "without_password"]

# Control characters, line ends of every kind, what turns the direction of writing or marks text without being seen,
# halves of surrogate pairs. What scripts and emoji need to be joined or kept apart stays.
HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)

PASSWORD = re.compile(r"(?<=://)[^\s/?#'\"]*@")


def visible(text: str) -> str:
    r"""The same text with every character that acts instead of being seen as its escape: `\n`, `\x1b`, `\u202e`."""
    return HIDDEN.sub(lambda match: repr(match.group())[1:-1], text)


def without_password(text: str) -> str:
    """The same text, every address in it without the user and password before its host."""
    return PASSWORD.sub("…@", text)


def refuse_password(address: str | None, instead: str) -> str | None:
    """The same address, if it holds no user and password: parameters are recorded wherever a run is.

    Args:
        address: or None.
        instead: what to use.

    Raises:
        ValueError: it holds them.
    """
    if address is not None and PASSWORD.search(address):
        raise ValueError(f"an address with a password would be recorded; use {instead}")
    return address


def short(text: str) -> str:
    """Text of a message, quoted and cut."""
    return repr(text if len(text) <= 80 else text[:77] + "…")


def reason(error: Exception) -> str:
    """First line of what a library says."""
    lines = str(error).strip().splitlines()
    return visible(lines[0]) if lines else type(error).__name__
