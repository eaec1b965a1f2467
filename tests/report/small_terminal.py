"""As much of a terminal as the live screen uses: a cursor, erased lines, and rows that scroll away at the top."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

TOKENS = re.compile(r"\x1b\[(\??[0-9;]*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n]+)")


class SmallTerminal(io.StringIO):
    """A file for a rich console. Every sign must take one cell."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__()
        self.width, self.height = width, height
        self.rows = [""] * height
        self.gone: list[str] = []
        self.row = self.column = 0
        self.after_each_write: Callable[[], object] = lambda: None

    def shown(self) -> list[str]:
        """The rows from the top of the terminal, without spaces at their ends."""
        return [row.rstrip() for row in self.rows]

    def write(self, text: str) -> int:
        for amount, code, back, down, words in TOKENS.findall(text):
            if code == "A":
                self.row = max(0, self.row - int(amount or 1))
            elif code == "K":
                assert amount == "2", f"another way to erase: {amount}"
                self.rows[self.row] = ""
            elif code:
                assert code in "mhl", (
                    f"unknown code {amount}{code}"
                )  # colours, and whether the cursor is shown
            elif back:
                self.column = 0
            elif down:
                self._down()
            else:
                self._put(words)
        self.after_each_write()
        return len(text)

    def _put(self, words: str) -> None:
        for sign in words:
            if self.column == self.width:
                self._down()
            row = self.rows[self.row].ljust(self.column)
            self.rows[self.row] = row[: self.column] + sign + row[self.column + 1 :]
            self.column += 1

    def _down(self) -> None:
        self.row, self.column = self.row + 1, 0
        if self.row == self.height:
            self.gone.append(self.rows.pop(0).rstrip())
            self.rows.append("")
            self.row -= 1
