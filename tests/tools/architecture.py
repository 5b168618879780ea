"""Draws the architecture for CONTRIBUTING.md from the imports: `python tests/tools/architecture.py` rewrites it."""

import ast
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "CONTRIBUTING.md"
PACKAGES = {
    "eplb": REPOSITORY / "eplb",
    "eplb_traces": REPOSITORY / "traces" / "eplb_traces",
    "eplb_cli": REPOSITORY / "cli" / "eplb_cli",
}
BEGIN, END = "<!-- architecture -->\n```mermaid\n", "```\n<!-- end -->"


def folder_imports() -> dict[str, set[str]]:
    """Which folder of eplb, or other package, imports which."""
    found: dict[str, set[str]] = {}
    for package, root in PACKAGES.items():
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).parts
            unit = _unit(package, parts[0] if len(parts) > 1 else "")
            imported = {_unit(*name) for name in _imported(path)}
            if unit:
                found.setdefault(unit, set()).update(imported - {unit, ""})
    return found


def _imported(path: Path) -> set[tuple[str, str]]:
    """(package, folder) of every import of this project in a file, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    parts = [name.split(".") for name in names]
    return {(part[0], part[1] if len(part) > 1 else "") for part in parts if part[0] in PACKAGES}


def _unit(package: str, folder: str) -> str:
    """A folder of eplb; another package as a whole; nothing for the loose files of eplb."""
    if package != "eplb":
        return package
    return folder if (PACKAGES["eplb"] / folder).is_dir() and folder else ""


def without_shortcuts(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same arrows but for those that a longer path implies."""
    below = {unit: _reached(unit, imports) for unit in imports}
    return {
        unit: {one for one in direct if not any(one in below[other] for other in direct if other != one)}
        for unit, direct in imports.items()
    }


def _reached(unit: str, imports: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    rest = list(imports.get(unit, ()))
    while rest:
        one = rest.pop()
        if one not in found:
            found.add(one)
            rest.extend(imports.get(one, ()))
    return found


def mermaid() -> str:
    """The picture, as the text of a Mermaid flowchart."""
    arrows = without_shortcuts(folder_imports())
    lines = [f"    {unit} --> {below}" for unit in sorted(arrows) for below in sorted(arrows[unit])]
    return "\n".join(["flowchart TD", *lines]) + "\n"


def page_with_picture(page: str) -> str:
    """The page with the picture of today."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + mermaid() + END + rest.split(END, 1)[1]


if __name__ == "__main__":
    PAGE.write_text(page_with_picture(PAGE.read_text()))
