"""`eplb formats` and `eplb strategies`: the tables of the library, printed."""

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


def strategies(as_json: JsonOpt = False) -> None:
    """List the strategies."""
    from eplb.strategies import STRATEGIES

    if as_json:
        output.json_object({name: {"summary": strategy.summary} for name, strategy in STRATEGIES.items()})
        return
    rows = [(name, strategy.summary) for name, strategy in STRATEGIES.items()]
    output.table("Strategies; auto picks one and gives the reason", ("name", "what"), rows)
