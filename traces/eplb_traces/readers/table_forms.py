"""Reads a table of any of the known forms: long, wide, transposed or token form."""

from eplb_traces.readers.dialect import Reading, ReadOptions
from eplb_traces.readers.table import Table
from eplb_traces.readers.table_columns import Columns, Form, understand
from eplb_traces.readers.table_loads import read_pairs
from eplb_traces.readers.table_rows import read_experts, read_rows
from eplb_traces.readers.table_tokens import read_tokens

_READ = {
    Form.PAIR: read_pairs,
    Form.LAYER: read_rows,
    Form.EXPERT: read_experts,
    Form.TOKEN: read_tokens,
}


def read_table(table: Table, options: ReadOptions) -> Reading:
    """Read a table; without a header its rows are layers and its columns experts.

    Raises
    ------
    InputError
        If the header is of no known form, or a cell is not what its column is.
    """
    if table.names is not None:
        columns = understand(table.names, options.num_experts)
    else:
        values = tuple(range(table.num_columns))
        columns = Columns(form=Form.LAYER, values=values, value_ids=values, is_named=False)
    return _READ[columns.form](table, columns, options)
