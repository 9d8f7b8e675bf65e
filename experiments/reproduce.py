"""Tries a published claim here and puts our figure beside the published one.

    python -m experiments.reproduce --list
    python -m experiments.reproduce nvidia-pattern
    python -m experiments.reproduce recall-ratio --scale=cpu
    python -m experiments.reproduce recall-ratio --save=results/recall_ratio

A claim is a study: type the command again and it goes on where it was stopped, or only judges what is there. What comes
out is a row a statement (claim.csv, claim.md, claim.png) in the study's report folder.
Exit codes are those of the sweep; a claim that disagrees is a finding, not a failure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.commandline import Flag, main, split, text_of
from hybrid.validation import ConfigError, unknown

if TYPE_CHECKING:
    from experiments.claims.claim import Claim, Finding, Scale
    from experiments.results import Results

ROOT = Path(__file__).resolve().parents[1]
WORKDIR = "runs/reproduce"
FLAGS = {
    "list": Flag("", text_of, "every claim: its source, what it costs here, what would count as agreement"),
    "scale": Flag("cpu|gpu", text_of, "the size at which it is tried (cpu)"),
    "workdir": Flag("FOLDER", text_of, f"where studies are kept ({WORKDIR})"),
    "workers": Flag("N", text_of, "worker processes, as the sweep takes them"),
    "dry_run": Flag("", text_of, "list the runs of its study and their cost, train nothing"),
    "save": Flag("FOLDER", text_of, "keep the small form of the results and the findings there"),
}


def command(argv: list[str]) -> int:
    from experiments.claims import CLAIMS

    words, given = split(argv, __doc__, FLAGS, words=True)
    if "list" in given:
        print("\n".join(listing(list(CLAIMS.values()))))
        return 0
    if len(words) != 1:
        raise ConfigError("claim", f"{len(words)} names are not allowed; must be one (allowed: {', '.join(CLAIMS)})")
    if words[0] not in CLAIMS:
        raise unknown("claim", words[0], list(CLAIMS), f"{words[0]!r} is not a claim")
    claim, name = CLAIMS[words[0]], given.get("scale", "cpu")
    if name not in claim.scales:
        raise unknown("--scale", name, list(claim.scales), f"{claim.name} has no scale {name!r}")
    scale = claim.scales[name]
    folder = place(claim, name, Path(given.get("workdir", WORKDIR)))
    if scale.config:
        code = _sweep(scale, folder, [f"--{flag}={given[flag]}" for flag in ("workers",) if flag in given], given)
        if code or "dry_run" in given:
            return code
    findings, results = judged(claim, folder)
    paths = write(claim, scale, findings, results, folder / "report")
    print("\n".join(shown(claim, scale, findings, results)))
    if "save" in given:
        kept = Path(given["save"])
        if results is not None:
            results.save(kept)
        write(claim, scale, findings, results, kept)
        print(f"saved: {kept}")
    print("\n".join(f"written: {path}" for path in paths))
    return 0


def place(claim: Claim, scale: str, workdir: Path) -> Path:
    """The folder of the claim's study. Claims that share a config share its runs."""
    config = claim.scales[scale].config
    return workdir / f"{Path(config).stem if config else claim.name}-{scale}"


def kept(claim: Claim) -> Path:
    """Where the project keeps the small form of its study on two cores; claims that share a config share it."""
    config = claim.scales["cpu"].config
    return ROOT / "results" / (Path(config).stem if config else claim.name)


def _sweep(scale: Scale, folder: Path, more: Sequence[str], given: dict) -> int:
    from experiments import sweep

    config = scale.config if Path.cwd() == ROOT else ROOT / scale.config  # the manifest keeps what was typed
    flags = [f"--config={config}", f"--workdir={folder}", *scale.overrides, *more]
    return sweep.command([*flags, *(["--dry_run"] if "dry_run" in given else [])])


def judged(claim: Claim, folder: Path) -> tuple[list[Finding], Results | None]:
    """The claim's findings from the study in `folder`, and its results; None where nothing is trained."""
    if claim.computed is not None:
        return claim.computed(), None
    from experiments.results import load

    assert claim.judge is not None, "a claim is computed or judged"
    results = load(folder)
    return claim.judge(results), results


# --- what is shown ----------------------------------------------------------------------------------------------------

HEADER = ("statement", "published", "ours", "tolerance", "verdict")


def listing(claims: Sequence[Claim]) -> Iterator[str]:
    """The lines of --list."""
    for claim in claims:
        yield claim.name
        yield f"  {claim.about}"
        yield f"  source     {claim.source}"
        yield f"  published  {claim.published}"
        yield f"  agrees if  {claim.agreement}"
        for name, scale in claim.scales.items():
            yield f"  {name:<10} {cost(scale)}" + (f"; reduced: {scale.reduced}" if scale.reduced else "")
        if claim.full_cost:
            yield f"  in full    {claim.full_cost}"
        yield ""


def cost(scale: Scale) -> str:
    """In words."""
    if scale.minutes is None:
        return "cost not measured yet"
    return f"{scale.minutes:.0f} minutes" if scale.minutes >= 1 else "seconds"


def shown(claim: Claim, scale: Scale, findings: Sequence[Finding], results: Results | None) -> Iterator[str]:
    """claim.md: the table of findings and what must be known of them."""
    from experiments.claims.claim import overall
    from experiments.report_text import grid

    yield f"# {claim.name}: {overall(findings)}"
    yield ""
    yield f"{claim.about} Source: {claim.source}."
    yield ""
    yield from grid(HEADER, map(cells, findings))
    if claim.details is not None and results is not None:
        yield from claim.details(results)
    if scale.reduced:
        yield f"Reduced protocol: {scale.reduced}."
    yield f"Agreement: {claim.agreement}. Intervals are 95 % over seeds where nothing else is said."
    if results is not None:
        if claim.floor is not None and claim.floor(results):
            yield f"Noise floor: {claim.floor(results)}."
        from experiments.results import digest

        yield ""
        done = f"{results.counts().get('done', 0)} of {len(results.runs)} done"
        yield f"Study {results.study}, runs {digest(results.runs['id'])}: {done}. Rates: on {results.select_on}."


def cells(finding: Finding) -> list[str]:
    """A row of HEADER."""
    ours = finding.text or ("" if finding.ours is None else _number(finding.ours))
    if not finding.text and finding.low is not None and finding.high is not None and finding.low < finding.high:
        ours += f" [{_number(finding.low)}, {_number(finding.high)}]"
    unit = f" {finding.unit}" if ours and not finding.text and finding.unit else ""
    return [finding.statement, finding.published, ours + unit, finding.tolerance, finding.verdict]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 2 else f"{value:.3f}"


def write(claim: Claim, scale: Scale, findings: Sequence[Finding], results: Results | None, folder: Path) -> list[Path]:
    """claim.md, claim.csv and claim.png in `folder`."""
    import polars as pl

    from experiments.claims.figure import figure
    from experiments.files import write_text

    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "claim.md", "\n".join(shown(claim, scale, findings, results)) + "\n")
    rows = [{k: v for k, v in dataclasses.asdict(finding).items() if k != "allowed"} for finding in findings]
    write_text(folder / "claim.csv", pl.DataFrame(rows, infer_schema_length=None).write_csv())
    drawn = figure(claim, findings, results)
    drawn.savefig(folder / "claim.png", dpi=160, metadata={"Software": None})
    return [folder / name for name in ("claim.md", "claim.csv", "claim.png")]


if __name__ == "__main__":
    main(command)
