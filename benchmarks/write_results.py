"""Write docs/results.md from the records under docs/results.

python benchmarks/write_results.py

A record is the ``summary.json`` of ``rare test`` or the files of ``rare compare``, copied into ``docs/results/NAME/``,
or what a benchmark wrote with ``--output docs/results/NAME.json``. Nothing in docs/results.md is typed by hand, but
what a ``remarks.md`` in a record's folder, or ``NAME.md`` beside it, says of it, and ``remarks.md`` of all.
"""

import json
from pathlib import Path
from typing import Any

from rare_lightning.evaluation.tables import describe_summary, markdown_table

DOCS = Path(__file__).parents[1] / "docs"


def test_section(folder: Path) -> list[str]:
    """Tables of one test, both truths."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    lines = [f"## {folder.name}", "", describe_summary(summary) + ".", ""]
    lines += [f"    {summary['training']['command']}", f"    {summary['test']['command']}", ""]
    lines += remarks(folder / "remarks.md")
    for truth in ("level", "fine"):
        levels = summary[truth]["levels"]
        classes = next(iter(levels.values()))["classes"]
        rows = [
            {
                "level": level,
                "spacing (mm)": entry["spacing_mm"],
                **{f"Dice {name}": number(entry["classes"][name]["dice"]) for name in classes},
                **scores(entry["mean"]),
            }
            for level, entry in levels.items()
        ]
        rows.append(
            {"level": "mean", "spacing (mm)": "", **dict.fromkeys(classes, ""), **scores(summary[truth]["mean"])}
        )
        undefined = sum(e["classes"][c]["hd95_mm_undefined"] for e in levels.values() for c in classes)
        note = f"; HD95 undefined {undefined} times" if undefined else ""
        lines += [f"Against the `{truth}` truth{note}:", "", markdown_table(rows), ""]
    pictures = [path.name for path in sorted(folder.glob("*.png"))]
    return lines + [f"![{name}](results/{folder.name}/{name})\n" for name in pictures]


def comparison_section(folder: Path) -> list[str]:
    """Mean Dice of every method, both truths; the whole comparison is a page of its own."""
    record = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    means = {
        (mean["method"], mean["truth"], mean["level"]): f"{mean['mean']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}]"
        for mean in record["means"]
        if mean["score"] == "dice" and mean["class"] == "mean"
    }
    levels = sorted({level for _, _, level in means}, key=lambda level: (level == "mean", level))
    lines = [
        f"## {folder.name}",
        "",
        f"{len(record['cases'])} test cases, mean Dice and its 95 % interval over cases.",
        "",
    ]
    for truth in ("level", "fine"):
        rows = []
        for method, facts in record["methods"].items():
            training = facts["training"] or {}
            trained = f"{training['epochs']} epochs, {training['minutes']:.0f} min" if "minutes" in training else ""
            rows.append(
                {"method": method, "kept after": trained}
                | {f"level {level}" if level != "mean" else level: means[method, truth, level] for level in levels}
            )
        lines += [f"Against the `{truth}` truth:", "", markdown_table(rows), ""]
    lines += remarks(folder / "remarks.md")
    lines += [
        f"All of it, with tests, times and figures: [results/{folder.name}](results/{folder.name}/comparison.md).",
        "",
    ]
    pictures = ("dice_by_resolution.png", "montage.png")
    return lines + [f"![{name}](results/{folder.name}/{name})\n" for name in pictures if (folder / name).exists()]


def scores(entry: dict[str, Any]) -> dict[str, str]:
    """Mean scores of a level."""
    return {
        "Dice": number(entry["dice"]),
        "HD95 (mm)": number(entry["hd95_mm"], 2),
        "NSD": number(entry["nsd"]),
        "volume diff.": number(entry["volume_diff"]),
    }


def number(value: float | None, digits: int = 3) -> str:
    """Rounded; a dash where undefined."""
    return "-" if value is None else f"{value:.{digits}f}"


def benchmark_section(path: Path) -> list[str]:
    """Table of one benchmark."""
    record = json.loads(path.read_text(encoding="utf-8"))
    process = record["process"]
    script = Path(process["command"].split()[0])
    run = "" if script.suffix != ".py" else "python " if script.parent.name else "python benchmarks/"
    where = f"commit {process['commit']}, {process['hardware']}, torch {process['versions']['torch']}"
    lines = [
        f"## {record['title']}",
        "",
        f"{record['note']}; {where}.",
        "",
        f"    {run}{process['command']}",
    ]
    picture = path.with_suffix(".png")
    pictures = [f"![{picture.stem}](results/{picture.name})", ""] if picture.exists() else []
    return [*lines, "", markdown_table(record["rows"]), "", *remarks(path.with_suffix(".md")), *pictures]


def remarks(path: Path) -> list[str]:
    """What is said of a record, if anything is."""
    return [path.read_text(encoding="utf-8")] if path.exists() else []


def main() -> None:
    """Write the page."""
    lines = [
        "# Results",
        "",
        "Written by `python benchmarks/write_results.py` from the records under `docs/results`.",
        "",
        *remarks(DOCS / "results" / "remarks.md"),
    ]
    for folder in sorted(path.parent for path in (DOCS / "results").glob("*/summary.json")):
        lines += test_section(folder)
    for folder in sorted(path.parent for path in (DOCS / "results").glob("*/comparison.json")):
        lines += comparison_section(folder)
    for path in sorted((DOCS / "results").glob("*.json")):
        lines += benchmark_section(path)
    (DOCS / "results.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
