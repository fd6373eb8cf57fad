"""The error that a person can mend."""

from pathlib import Path

from common import paths


class UserError(Exception):
    """A mistake the person can mend. The text reads `WHERE: what is wrong – what to do`.

    Attributes:
        where, what, remedy: as given.
    """

    def __init__(self, where: Path | str, what: str, remedy: str):
        self.where, self.what, self.remedy = where, what, remedy
        where = paths.display(where) if isinstance(where, Path) else where
        super().__init__(f"{where}: {what} – {remedy}".replace("\n", " "))
