"""Section about the effects of a setting: see `patchcore.report.effects`."""

from patchcore.errors import counted
from patchcore.report.blocks import (
    MARKDOWN,
    PAGE,
    PARTIAL,
    Block,
    Cell,
    Fold,
    Grid,
    Head,
    Heading,
    Note,
    text_cell,
    value_cell,
)
from patchcore.report.effects import Effect, effects
from patchcore.report.plots import costs
from patchcore.report.table import Table
from patchcore.report.words import falls, number, title

TEXT = (PAGE, MARKDOWN)


def effect_blocks(table: Table, against: tuple[str, str] | None) -> list[Block]:
    """Return tables of the effects of a setting, given as key and value; empty for None."""
    if against is None:
        return []
    key, value = against
    metrics = list(dict.fromkeys([*table.main_metrics, *costs(table)]))
    found = effects(table, key, value, metrics)
    if not found:
        return []
    note = (
        f"Differences from {key}={value}, in pairs of runs that are equal in everything else. The "
        "differences of each category and seed are averaged over the other settings. ± is half the "
        "width of Student’s 95 % interval over categories and seeds; a single observation has no "
        "interval."
    )
    blocks: list[Block] = [Note(note), _grid([e for e in found if not e.others], key, "Effects")]
    missing = sum(effect.missing for effect in found)
    if missing:
        are = "is left out: its" if missing == 1 else "are left out: their"
        told = f"{counted(missing, 'value')} {are} run, or the partner at {key}={value}, "
        blocks.append(Note(f"{told}is missing, did not finish or has no such metric."))
    if any(effect.partial for effect in found):
        blocks.append(Note(PARTIAL))
    single = [effect for effect in found if effect.others]
    if single:
        each = _grid(single, key, "Effects at each setting of the others")
        blocks += [Fold("At each setting of the others", [each], forms=(PAGE,))]
        blocks += [Heading(["At each setting of the others"], forms=(MARKDOWN,))]
        blocks += [Grid(each.heads, each.rows, forms=(MARKDOWN,))]
    return blocks


def _grid(found: list[Effect], key: str, name: str) -> Grid:
    heads = [Head(key, "ascending", kind="text", breaks=True, place=1)]
    rows: list[list[Cell]] = []
    several = any(effect.others for effect in found)
    if several:
        heads.append(Head("others", "ascending", kind="text", place=1))
    heads += [Head("metric", "ascending", kind="text", place=2)]
    heads += [Head(text, "descending", place=2) for text in ("difference", "observations", "pairs")]
    for effect in found:
        value = effect.difference
        row = [text_cell(effect.value), *([text_cell(effect.others, "wrap")] * several)]
        row += [text_cell(title(effect.metric))]
        if value.defined:
            half = f"± {number(effect.metric, value.half)}" if value.count > 1 else ""
            note = f"{half}{'*' * effect.partial}"
            row.append(value_cell(value.mean, _signed(effect.metric, value.mean), "", "", note))
        else:
            row.append(value_cell(value.mean, "undefined", value.reason, "undefined"))
        row += [
            value_cell(value.count, str(value.count)),
            value_cell(effect.pairs, str(effect.pairs)),
        ]
        if value.defined and value.count > 1 and abs(value.mean) > value.half:
            good = (value.mean < 0) == falls(effect.metric)
            row[-3].kind = "best" if good else "worse"
        rows.append(row)
    return Grid(heads, rows, "sortable", name, forms=TEXT)


def _signed(metric: str, value: float) -> str:
    text = number(metric, value)
    return f"+{text}" if value > 0 else text
