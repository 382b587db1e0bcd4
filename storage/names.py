"""When two names are one and the same to whoever reads them."""

import unicodedata

__all__ = ["folded"]

# Categories of Unicode: control characters, and those that only steer how others are shown.
UNSEEN = ("Cc", "Cf")


def folded(name: str) -> str:
    """The normal form of a name, which is the same for two names that look the same.

    Composed characters (NFC), every run of white space as one space and none at the ends, nothing that is not seen:
    zero-width characters, marks of direction, control characters. Letters keep their case.
    """
    if name.isascii() and name.isprintable():
        return " ".join(name.split()) if " " in name else name
    spaced = " ".join(unicodedata.normalize("NFC", name).split())
    return " ".join("".join(one for one in spaced if unicodedata.category(one) not in UNSEEN).split())
