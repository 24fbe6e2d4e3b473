"""Formats plans and checks as tables: one column per target, one row per value."""

import textwrap

_WIDTH = 110
_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_NOTE = (
    "Planned by XLA, for one device and one step; nothing was run. Each time is a lower bound, from a published peak "
    "rate or bandwidth alone. A step takes at least the largest of them, and longer if they do not overlap."
)


def plan_lines(report: dict) -> list[str]:
    """Format a report of `plan.plan` as lines of text."""
    versions = report["versions"]
    shown = {name: entry for name, entry in report["targets"].items() if "devices" in entry or "count" in entry}
    lines = [
        f"plan: {report['what']}",
        f"jax {versions['jax']}, jaxlib {versions['jaxlib']}, Python {versions['python']}, {report['date']}",
    ]
    if shown:
        rows = [("", *shown)]
        for label, text in _ROWS:
            cells = [_cell(text, entry) for entry in shown.values()]
            if any(cells):
                rows.append((label, *(cell or "-" for cell in cells)))
        lines += ["", *columns(rows), "", *textwrap.wrap(_NOTE, _WIDTH)]
    sources = {entry["source"] for entry in shown.values() if "source" in entry}
    lines += [f"Published figures: {source}." for source in sorted(sources)]
    lines += [f"error: {entry['error']}" for entry in report["targets"].values() if "error" in entry]
    return lines


def columns(rows: list[tuple[str, ...]]) -> list[str]:
    """Align rows of equally many cells to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def size(count: float) -> str:
    """Format bytes with three significant digits, such as `61.7 GB`."""
    unit, name = next(((unit, name) for unit, name in _UNITS if count >= unit), (1, "B"))
    return f"{count / unit:#.3g} {name}".replace(". ", " ")


def collectives(found: list[tuple[str, int]]) -> str:
    """Format pairs of operation and bytes: `2 all-reduces of 151 MB + 202 MB`."""
    if not found:
        return "none"
    kinds = {}
    for op, count in found:
        kinds.setdefault(op, []).append(count)
    return ", ".join(
        f"{len(sizes)} {kind}{'s' * (len(sizes) > 1)} of {' + '.join(map(size, sizes))}"
        for kind, sizes in kinds.items()
    )


def _cell(text, entry):
    try:
        return text(entry)
    except KeyError:  # planning stopped before this value
        return ""


def _batch(entry):
    planned = entry.get("figures_of_batch", entry["batch_per_device"])
    instead = "" if planned == entry["batch_per_device"] else f" ({entry['batch_per_device']} do not fit)"
    parts = entry["parts"]
    split = f" in {parts} parts of {planned}" if parts > 1 else ""
    return f"{planned * parts} per device{split}, {planned * parts * entry['count']} in total{instead}"


def _memory(entry):
    usable = entry["usable_bytes"]
    there = f" of {size(usable)}" if usable else ""
    return f"{size(entry['peak_bytes'])}{there}" + (", does not fit" if usable and entry["peak_bytes"] > usable else "")


def _largest(entry):
    if not entry["compiled"]:
        return ""
    tried = ", ".join(
        f"{each['batch_per_device']}{'' if each['peak_bytes'] is not None else ' (does not fit)'}"
        for each in entry["compiled"]
    )
    if entry["largest_batch_per_device"] is None:
        return f"not searched (compiled: {tried})"
    unfinished = "" if entry["search_ended"] else " or more"
    return f"{entry['largest_batch_per_device'] or 'none'}{unfinished} (compiled: {tried})"


def _milliseconds(name):
    return lambda entry: f"{1e3 * entry['bound_seconds'][name]:#.3g} ms".replace(". ", " ")


_ROWS = (
    ("devices", lambda e: f"{e['count']} x {e['kind']}, {e['hosts']} host{'s' * (e['hosts'] > 1)}"),
    ("batch", _batch),
    ("arguments", lambda e: size(e["argument_bytes"])),
    ("temporaries", lambda e: size(e["temp_bytes"])),
    ("peak, program included", _memory),
    ("largest batch or part", _largest),
    ("arithmetic", lambda e: f"{e['flops'] / 1e12:#.4g} TFLOP"),
    ("memory traffic", lambda e: f"{size(e['bytes_moved'])} ({e['bytes_moved_of']})"),
    ("collectives", lambda e: collectives([(each["op"], each["bytes"]) for each in e["collectives"]])),
    ("bound: arithmetic at peak", _milliseconds("arithmetic")),
    ("bound: memory traffic", _milliseconds("memory")),
    ("bound: collectives", _milliseconds("collectives")),
    ("feed, at most", lambda e: f"{e['crops_per_second_at_most']:,.0f} crops/s"),
    ("checkpoint", lambda e: size(e["checkpoint_bytes"])),
    ("compiling", lambda e: f"{e['compile_seconds']:.0f} s"),
    ("planning", lambda e: f"{e['planning_seconds']:.0f} s, {size(e['host_peak_bytes'])} of this machine"),
)
