"""`eplb formats`, `eplb strategies` and `eplb trace dialects`: the tables of the library, printed."""

from eplb_cli import output
from eplb_cli.arguments.options import JsonOpt


def formats(as_json: JsonOpt = False) -> None:
    """List the dialects of placement files."""
    from eplb.formats import FORMATS

    if as_json:
        output.json_object({name: {"suffixes": list(f.suffixes), "summary": f.summary} for name, f in FORMATS.items()})
        return
    rows = [(name, " ".join(f.suffixes), f.summary) for name, f in FORMATS.items()]
    output.table("Formats, to read and to write", ("name", "files", "what"), rows)


def dialects(as_json: JsonOpt = False) -> None:
    """List the dialects of loads and traces: what shows each, what it becomes and what is refused."""
    from eplb_traces import READERS

    if as_json:
        output.json_object(
            {
                name: {
                    "suffixes": list(dialect.SUFFIXES),
                    "recognised_by": dialect.RECOGNISED_BY,
                    "becomes": dialect.BECOMES,
                    "refuses": dialect.REFUSES,
                }
                for name, dialect in READERS.items()
            }
        )
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


def strategies(as_json: JsonOpt = False) -> None:
    """List the strategies and the options that each plans for; all others are refused."""
    from eplb.strategies import STRATEGIES
    from eplb.strategies.options import HONOURED, PlanOption

    options = {name: [option for option in PlanOption if option in HONOURED[name]] for name in STRATEGIES}
    if as_json:
        output.json_object(
            {name: {"summary": s.summary, "options": [*map(str, options[name])]} for name, s in STRATEGIES.items()}
        )
        return
    rows = [(name, strategy.summary, ", ".join(options[name]) or "none") for name, strategy in STRATEGIES.items()]
    output.table("Strategies; auto picks one and gives the reason", ("name", "what", "options"), rows)
