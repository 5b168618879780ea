"""`eplb formats`, `eplb strategies` and `eplb trace dialects`: the tables of the library, printed."""

from collections.abc import Mapping

from eplb_cli import output
from eplb_cli.arguments.options import CsvOpt, JsonOpt


def _printed(found: Mapping[str, Mapping[str, object]], *, as_csv: bool, as_json: bool) -> bool:
    """Print the table for a program, if that was requested."""
    if as_csv:
        output.csv_rows([{"name": name, **fields} for name, fields in found.items()])
    elif as_json:
        output.json_object(found)
    return as_csv or as_json


def formats(as_csv: CsvOpt = False, as_json: JsonOpt = False) -> None:
    """List the dialects of placement files."""
    from eplb.formats import FORMATS

    found = {name: {"suffixes": list(f.suffixes), "summary": f.summary} for name, f in FORMATS.items()}
    if _printed(found, as_csv=as_csv, as_json=as_json):
        return
    rows = [(name, " ".join(f.suffixes), f.summary) for name, f in FORMATS.items()]
    output.table("Formats, to read and to write", ("name", "files", "what"), rows)


def dialects(as_csv: CsvOpt = False, as_json: JsonOpt = False) -> None:
    """List the dialects of loads and traces: what shows each, what it becomes and what is refused."""
    from eplb_traces import READERS

    found = {
        name: {
            "suffixes": list(dialect.SUFFIXES),
            "recognised_by": dialect.RECOGNISED_BY,
            "becomes": dialect.BECOMES,
            "refuses": dialect.REFUSES,
        }
        for name, dialect in READERS.items()
    }
    if _printed(found, as_csv=as_csv, as_json=as_json):
        return
    for name, dialect in READERS.items():
        output.facts(
            f"{name} ({' '.join(dialect.SUFFIXES) or 'folder'})",
            [
                ("recognised by", dialect.RECOGNISED_BY),
                ("becomes", dialect.BECOMES),
                ("refuses", dialect.REFUSES),
            ],
        )


def _installed() -> list[tuple[str, str]]:
    """Name and summary of the strategies of installed packages; what hinders, for one that cannot be used."""
    from eplb.errors import InputError
    from eplb.strategies import STRATEGIES, find_strategy
    from eplb.strategies.own_strategy import installed_strategies

    rows = []
    for name, entry in installed_strategies().items():
        try:
            summary = find_strategy(name).summary
        except InputError as error:
            summary = f"cannot be used: {error}"
        if name in STRATEGIES:
            name, summary = f"{name} of {entry.value}", "cannot be used: eplb has a strategy of this name"
        rows.append((name, summary))
    return rows


def strategies(as_csv: CsvOpt = False, as_json: JsonOpt = False) -> None:
    """List the strategies and the options that each plans for; all others are refused."""
    from eplb.strategies import STRATEGIES
    from eplb.strategies.options import HONOURED, PlanOption

    options = {name: ", ".join(option for option in PlanOption if option in HONOURED[name]) for name in STRATEGIES}
    rows = [(name, strategy.summary, options[name] or "none") for name, strategy in STRATEGIES.items()]
    rows += [(name, summary, "decides itself") for name, summary in _installed()]
    found = {
        name: {"summary": summary, "options": sorted(HONOURED[name]) if name in HONOURED else None}
        for name, summary, _ in rows
    }
    if _printed(found, as_csv=as_csv, as_json=as_json):
        return
    output.table("Strategies; auto picks one and gives the reason", ("name", "what", "options"), rows)
