"""Files that ship inside the package."""

from importlib import resources


def server_code(name: str) -> str:
    """A Python file for servers; it is written beside a bundle's files, and imports nothing of this package."""
    return (resources.files(__name__) / "server" / f"{name}.py.in").read_text(encoding="utf-8")
