"""Write the pages of docs/ that are made from the code: `make docs`."""

from __future__ import annotations

from pathlib import Path

from gateway.settings import OPTIONS, variable

DOCS = Path(__file__).parent
HEAD = """\
<!-- Made from gateway/settings.py by `make docs`. -->
# Settings

Settings are environment variables. A value that cannot be used, or a `GATEWAY_` variable that is not on this page,
stops the start with exit code 2 and one line that names the variable.
"""


def settings() -> str:
    """The page of settings, a section each."""
    parts = [HEAD]
    for name, option in OPTIONS.items():
        default = f"`{option.default}`" if option.default not in ("", "random") else option.default or "none"
        parts.append(f"## {variable(name)}\n\n{option.meaning}\n")
        parts.append(f"Default: {default}. Value: {option.parser.accepts}.\n")
    return "\n".join(parts)


PAGES = {"settings.md": settings}

if __name__ == "__main__":
    for file, page in PAGES.items():
        (DOCS / file).write_text(page(), "utf-8")
