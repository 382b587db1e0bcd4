"""The receipt of a compaction as text, which can be shown to whoever withdrew documents."""

from collections.abc import Mapping

from dataworth.storage.place import Location
from dataworth.storage.removals import Removal
from dataworth.tasks.visible import visible

__all__ = ["checked", "receipt"]


def receipt(removal: Removal, path: Location) -> str:
    """The receipt of a finished removal; `path` is the file of its record."""
    kinds = {"corpora": "corpora", "layers": "fits", "scores": "scores", "values": "values", "games": "games"}
    stores = ", ".join(f"{len(removal.stores.get(kind, []))} {named}" for kind, named in kinds.items())
    lines = [f"withdrawn {entry['what']} {visible(entry['name'])} ({entry['date']})" for entry in removal.withdrawn]
    lines += [
        f"removed   {len(removal.texts):,} texts; {removal.rows:,} rows of gradients ({removal.row_bytes / 2**20:,.1f} "
        f"MB) of {len(removal.contents):,} documents; {stores}",
    ]
    if removal.shared:
        lines.append(f"kept      gradients of {removal.shared:,} documents, whose texts others provided, too")
    lines += [
        f"checked   {checked(removal.checked)}",
        f"done      {removal.finished}",
        f"receipt   {path}, with the SHA-256 of every text",
        "not touched: results folders, MLflow runs and your own files of earlier valuations",
    ]
    return "\n".join(lines)


def checked(counts: Mapping[str, int]) -> str:
    """What was looked through after a compaction, in a sentence."""
    said = (
        f"{counts['stores']:,} stores, {counts['documents']:,} documents, {counts['contents of gradients']:,} contents "
        "of gradients: none was withdrawn"
    )
    unknown = counts["contents of nobody known"]
    return said if not unknown else f"{said}; of {unknown:,} no corpus says whose they are"
