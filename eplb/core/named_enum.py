"""Looks up a word of a closed set by its name."""

import re
from enum import StrEnum
from typing import Self

from eplb.errors import UnknownNameError


class NamedEnum(StrEnum):
    """A closed set of words that users type; what they name is the name of the class."""

    @classmethod
    def named(cls, name: str) -> Self:
        """The member of that name; UnknownNameError with the list if there is none."""
        try:
            return cls(name)
        except ValueError:
            kind = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", cls.__name__).lower()
            raise UnknownNameError(kind, name, cls) from None
