"""The table of a fault campaign."""

KINDS = ("right", "refused", "wrong")
"""Every outcome of a try begins with one of these."""


def table(counts: dict[str, dict[str, int]]) -> str:
    """A line for each part: tries, right, refused, wrong; and below it all that went wrong."""
    lines = ["| part | tries | right | refused in one sentence | wrong |", "|---|---|---|---|---|"]
    wrong = []
    for part, found in counts.items():
        ends = {kind: sum(n for o, n in found.items() if o.startswith(kind)) for kind in KINDS}
        lines.append(f"| {part} | {sum(found.values())} | {' | '.join(map(str, ends.values()))} |")
        wrong += [f"- {part}: {n} x {o}" for o, n in found.items() if o.startswith("wrong")]
    return "\n".join([*lines, "", *wrong, ""])
