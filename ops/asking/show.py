"""The answers for a terminal: tables, and a score as a line of blocks."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

BLOCKS = " ▁▂▃▄▅▆▇█"
SAID_MAX, RECENT_MAX = 6, 12


def customer_table(data: dict[str, Any]) -> Table:
    """What is known of a customer, as `customer.view` answers."""
    state, table = data["state"], Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    last = data["last_score"]
    rows = {
        "customer": data["customer"],
        "as of": _day(data["as_of"]),
        "p": percent(data["probability"])
        if data["eligible"]
        else "not judged: too new, silent too long, or gone",
        "last decision": f"{percent(last['probability'])} as of {_day(last['as_of'])}"
        if last
        else "none yet",
        "episode": episodes_words(state["episodes"]),
        "first, last seen": f"{_day(state['first_seen'])}, {_day(state['last_seen'])}",
        "left": _day(state["left_explicitly_at"]),
        "if silent": curve_line(data["silence_curve"]),
        "": curve_words(data["silence_curve"]),
        "kinds": "\n".join(
            f"{each['words']}, last {_day(each['last'])}" for each in data["timeline"]["kinds"]
        ),
        "lately": "\n".join(
            f"{_day(each['at'])}  {each['kind']}" + (f" × {each['count']}" if each["count"] > 1 else "")
            for each in data["timeline"]["recent"][-RECENT_MAX:]
        ),
        "speaks most": "\n".join(
            f"{each['contribution']:+.2f}  {each['words']}" for each in data["reasons"][:SAID_MAX]
        ),
        "model": f"version {data['model_version']}",
    }
    for name, words in rows.items():
        if words:
            table.add_row(name, words)
    return table


def episodes_words(episodes: dict[str, dict[str, Any]]) -> str:
    """Of each target, a line each; of a spec with one its name goes without saying."""
    said = {
        name: each["state"]
        + (", held out" if each["held_out"] else "")
        + (f" since {_day(each['opened_at'])}" if each["opened_at"] else "")
        for name, each in episodes.items()
    }
    return "\n".join(words if len(said) == 1 else f"{name}: {words}" for name, words in said.items())


def at_risk_table(data: dict[str, Any]) -> Table:
    """Who is at risk, as `at_risk.at_risk` answers."""
    table = Table(box=None, pad_edge=False)
    valued = data["value"] is not None
    first = data["customers"][0] if data["customers"] else {}
    further = [name for name in first.get("targets") or () if name != data["target"]]
    right = {"p", "value", *further}
    for name in (
        "p",
        "",
        "customer",
        "as of",
        "last seen",
        "episode",
        *further,
        *(["value"] if valued else []),
    ):
        table.add_column(name, justify="right" if name in right else "left", no_wrap=name != "customer")
    for each in data["customers"]:
        table.add_row(
            percent(each["probability"]), bar(each["probability"], 12), each["customer"], _day(each["as_of"]),
            _day(each["last_seen"]), each["episode"] + (", held out" if each["held_out"] else ""),
            *(percent(each["targets"][name]["probability"]) for name in further),
            *([f"{each['value']:,.2f}" if each["value"] is not None else "-"] if valued else []),
        )  # fmt: skip
    return table


def at_risk_words(data: dict[str, Any]) -> str:
    """What the table leaves out."""
    said = [
        f"{len(data['customers']):,} of {data['listed']:,} at risk, by {data['order']}",
        f"target: {data['target']}",
    ]
    if data["considered"] < data["listed"]:
        said.append(f"the {data['considered']:,} with the highest p were looked at")
    if data["complete_from"] is not None:
        said.append(f"not all of them are here: with p below {data['complete_from']:.3f} some are missing")
    if data["value"]:
        said.append(f"value: {data['value']}")
    return "; ".join(said)


def bar(p: float, width: int) -> str:
    """p in [0, 1] as a bar of eighths of a cell."""
    eighths = round(8 * width * p)
    partial = "▏▎▍▌▋▊▉"[eighths % 8 - 1] if eighths % 8 else ""
    return "█" * (eighths // 8) + partial


def curve_line(curve: Sequence[dict[str, Any]]) -> str:
    """p over the coming silence, evenly in time from now to its end, a sign each; a gap where nobody is judged."""
    if len(curve) < 2:
        return ""
    end, width = curve[-1]["days"], 60
    line = []
    for cell in range(width):
        day = end * cell / (width - 1)
        after = next((i for i, each in enumerate(curve) if each["days"] >= day), len(curve) - 1)
        p = curve[after]["probability"]
        line.append(" " if p is None else BLOCKS[1 + min(int(8 * p), 7)])
    return "".join(line)


def curve_words(curve: Sequence[dict[str, Any]]) -> str:
    """Some of its points in figures."""
    if len(curve) < 2:
        return ""
    chosen = sorted({round(i * (len(curve) - 1) / 5) for i in range(6)})
    return " · ".join(f"{curve[i]['days']:.1f} d: {percent(curve[i]['probability'])}" for i in chosen)


def percent(p: float | None) -> str:
    return "-" if p is None else f"{p:.1%}"


def _day(when: str | None) -> str:
    return when[:16].replace("T", " ") if when else ""
