"""Files of JSON lines that another process is writing."""

import os
from pathlib import Path
from typing import Any

from rankwise.allocation.history import MOST_LINE
from rankwise.errors import FolderError
from rankwise.io.untrusted import brief, check_ordinary, parse_json

Line = dict[str, Any]


class Growing:
    """Gives each whole line once. A last line without its end is still being written, and left for the next time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = self._number = 0
        self._inode: int | None = None

    @property
    def replaced(self) -> bool:
        """Whether another file has taken its place, as when a run is resumed: what was read no longer holds."""
        return self._inode is not None and (not self.path.exists() or self.path.stat().st_ino != self._inode)

    def new_lines(self) -> list[Line]:
        """Those since the last call; none while the file is not there."""
        if not self.path.exists():
            return []
        check_ordinary(self.path, self.path.parent)
        read = []
        with self.path.open("rb") as file:
            self._inode = os.fstat(file.fileno()).st_ino
            file.seek(self._position)
            while (line := file.readline(MOST_LINE)).endswith(b"\n"):
                self._number += 1
                read.append(self._parsed(line))
                self._position += len(line)
            if len(line) == MOST_LINE:
                raise FolderError(f"{self.path}, line {self._number + 1}: longer than any line that rankwise writes.")
        return read

    def _parsed(self, line: bytes) -> Line:
        where = f"{self.path}, line {self._number}"
        data = parse_json(line.decode("utf-8", errors="replace"), where)
        if not isinstance(data, dict) or type(data.get("step")) is not int:
            raise FolderError(f"{where}: {brief(data)} is not what rankwise writes there.")
        return data
