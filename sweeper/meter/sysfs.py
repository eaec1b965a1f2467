"""Reads small files of sysfs and procfs, and raises the errors of this package."""

from __future__ import annotations

from pathlib import Path

from sweeper.errors import ReadingFailed


def read_text(path: Path) -> str | None:
    """The file's text without its newline, or None if it is missing or unreadable."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def read_int(path: Path) -> int | None:
    """The file's whole number, or None if it is missing, unreadable or not a number."""
    text = read_text(path)
    try:
        return None if text is None else int(text, 0)
    except ValueError:
        return None


def must_read_int(path: Path) -> int:
    """The file's whole number.

    Raises:
        ReadingFailed: the file contained none.
    """
    try:
        return int(path.read_text(encoding="utf-8"), 0)
    except (OSError, ValueError) as error:
        raise ReadingFailed(f"cannot read {path}: {error}") from error


def may_read(path: Path) -> bool:
    """Whether this process can read the file's content now. Only trying shows it."""
    try:
        path.read_bytes()
    except OSError:
        return False
    return True
