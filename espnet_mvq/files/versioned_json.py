"""Json files that name their format and version."""

import dataclasses
import json
from pathlib import Path
from typing import ClassVar, List, Tuple, Type, TypeVar, Union

from espnet_mvq.files.whole_file import write_text

_T = TypeVar("_T", bound="VersionedJson")


class VersionedJson:
    """Base of dataclasses that are stored as json, a key for each field.

    Attributes:
        FORMAT: Name of the format.
        VERSION: Newest version that can be read, and the one that is written.
        ORIGIN: How to make such a file, for the message if it is missing.
        MEANING: Fields that must agree for two files to have the same content.
    """

    FORMAT: ClassVar[str]
    VERSION: ClassVar[int] = 1
    ORIGIN: ClassVar[str]
    MEANING: ClassVar[Tuple[str, ...]] = ()

    def to_json(self) -> str:
        """Return the content of the file."""
        content = dataclasses.asdict(self)
        named = {"format": self.FORMAT, "version": self.VERSION, **content}
        return json.dumps(named, indent=2) + "\n"

    def save(self, path: Union[str, Path]) -> None:
        """Write the file atomically."""
        write_text(path, self.to_json())

    @classmethod
    def load(cls: Type[_T], path: Union[str, Path]) -> _T:
        """Read a file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not of this format, of a newer version, or has missing,
                unknown or wrong fields.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"metadata {path}: no such file; {cls.ORIGIN}")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            file_format, version = content.pop("format"), content.pop("version")
            if file_format != cls.FORMAT:
                raise ValueError(f"got format {file_format!r}, expected {cls.FORMAT!r}")
            if version > cls.VERSION:
                raise ValueError(
                    f"got version {version}, expected at most {cls.VERSION}; install "
                    "a newer espnet_mvq"
                )
            return cls(**content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"metadata {path}: not readable: {error}") from error

    def differences(self: _T, other: _T) -> List[str]:
        """List the fields of `MEANING` that differ, as `name: mine and other's`."""
        return [
            f"{name}: {getattr(self, name)!r} and {getattr(other, name)!r}"
            for name in self.MEANING
            if getattr(self, name) != getattr(other, name)
        ]
