"""Makes rows and tables of a migration: moves by distance, batches and seconds."""

from typing import TYPE_CHECKING

from eplb_cli import output

if TYPE_CHECKING:
    from eplb.core.migration import Migration

_MOST_LAYERS = 12


def migration_facts(migration: "Migration") -> list[tuple[str, output.Cell]]:
    """What moves, one line each."""
    from eplb.core.migration import Hop

    of_all = f"{migration.moved_copies} ({output.percentage(migration.moved_fraction)} % of the slots)"
    replicas = [migration.copies_of_hop(hop) for hop in Hop]
    size = migration.expert_bytes
    volume = [] if size is None else [("the same in bytes", " / ".join(output.byte_size(n * size) for n in replicas))]
    seconds = migration.transfer_s
    return [
        ("replicas moved to another rank", of_all),
        ("inside a rank / inside a node / between nodes", " / ".join(str(count) for count in replicas)),
        *volume,
        ("batches, one after the other", migration.num_batches),
        *([] if seconds is None else [("transfer", f"{output.milliseconds(seconds)} ms")]),
        ("staging", f"{output.counted(migration.staging_copies, 'expert')} on a rank"),
    ]


def layer_table(migration: "Migration") -> None:
    """Print what moves in each layer, those with most moves where there are many; nothing if nothing moves."""
    moved, batches = migration.moved_copies_by_layer.tolist(), migration.num_batches_by_layer.tolist()
    seconds = _seconds(migration)
    rows = [
        (layer, moved[layer], batches[layer], *(output.milliseconds(of[layer]) for of in seconds))
        for layer in _moving(migration)
    ]
    if not rows:
        return
    title = "Layers that move"
    if len(rows) > _MOST_LAYERS:
        title = f"{title}, the first {_MOST_LAYERS} by moves of {len(rows)}"
        rows = sorted(rows, key=lambda row: row[1], reverse=True)[:_MOST_LAYERS]
    output.table(title, ("layer", "replicas", "batches", "ms")[: len(rows[0])], rows)


def layer_objects(migration: "Migration") -> list[dict[str, object]]:
    """What moves in each layer, for `--json`."""
    moved, batches = migration.moved_copies_by_layer.tolist(), migration.num_batches_by_layer.tolist()
    seconds = _seconds(migration)
    return [
        {
            "layer": layer,
            "moved_copies": moved[layer],
            "num_batches": batches[layer],
            **({"transfer_s": seconds[0][layer]} if seconds else {}),
        }
        for layer in _moving(migration)
    ]


def _seconds(migration: "Migration") -> list[list[float]]:
    """[1, L] seconds of each layer; [0] where the bytes of an expert are unknown."""
    return [] if migration.expert_bytes is None else [migration.transfer_s_by_layer.tolist()]


def _moving(migration: "Migration") -> list[int]:
    """Layers in which a replica moves to another rank."""
    return [layer for layer, count in enumerate(migration.moved_copies_by_layer.tolist()) if count]
