"""Makes the W&B workspace that compares the arms of a project: python scripts/make_workspace.py --entity=E --project=P

Curves against tokens and against FLOPs, a line an arm with its spread over seeds; final scores against the share of
attention; parallel coordinates over what a study varies. With --study=NAME only that study's runs. Typed again it
updates the same workspace. --print shows the model as JSON and asks no server. Needs `pip install -e .[workspaces]`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

SCORE = "validation/bits_per_byte"
FINAL = ("final/validation/bits_per_byte", "final/test/bits_per_byte")
HALF, THIRD, ROW = 12, 8, 8  # widths and height of panels; a section is 24 wide


def build(entity: str, project: str, study: str) -> Any:
    """The workspace as an object of wandb_workspaces; no server is asked."""
    import wandb_workspaces.expr as expr
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"Hybrid: {study}" if study else "Hybrid: arms",
        sections=[
            ws.Section(name="Curves", panels=_curves(), is_open=True),
            ws.Section(name="Final scores", panels=_finals(), is_open=True),
            ws.Section(name="Everything at once", panels=_coordinates(), is_open=True),
            ws.Section(name="Training", panels=_training(), is_open=False),
        ],
        settings=ws.WorkspaceSettings(x_axis="tokens", max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=[expr.Metric("Group") == study] if study else [],
            groupby=[expr.Config("arm")],
            order=[expr.Ordering(expr.Summary(FINAL[0]), ascending=True)],
        ),
    )


def _curves() -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    def against(axis: str, column: int) -> Any:
        return wr.LinePlot(
            title=f"Validation bits per byte against {axis}",
            x=axis,
            y=[SCORE],
            log_x=True,
            groupby=wr.Config("arm"),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
            max_runs_to_show=100,
            layout=wr.Layout(x=column, w=HALF, h=ROW),
        )

    return [against("tokens", 0), against("flops", HALF)]


def _finals() -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    def against_ratio(i: int, score: str) -> Any:
        title = f"{score.split('/')[1].capitalize()} bits per byte against the share of attention"
        layout = wr.Layout(x=i * THIRD, w=THIRD, h=ROW)
        return wr.ScatterPlot(title=title, x=wr.Config("ratio"), y=wr.SummaryMetric(score), layout=layout)

    size = wr.ScatterPlot(
        title="Validation bits per byte against FLOPs per token",
        x=wr.Config("flops_per_token"),
        y=wr.SummaryMetric(FINAL[0]),
        log_x=True,
        layout=wr.Layout(x=2 * THIRD, w=THIRD, h=ROW),
    )
    return [*(against_ratio(i, score) for i, score in enumerate(FINAL)), size]


def _coordinates() -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    column = wr.ParallelCoordinatesPlotColumn
    axes = [column(metric=wr.Config(name)) for name in ("arm", "ratio", "placement", "seed", "params")]
    axes.insert(3, column(metric=wr.Config("learning_rate"), log=True))
    axes.append(column(metric=wr.SummaryMetric(FINAL[0]), display_name="validation bits per byte", inverted=True))
    return [wr.ParallelCoordinatesPlot(columns=axes, layout=wr.Layout(w=2 * HALF, h=ROW))]


def _training() -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    names = ("train/bits_per_byte", "train/gradient_norm", "train/update_ratio")
    return [
        wr.LinePlot(title=name, x="tokens", y=[name], layout=wr.Layout(x=i * THIRD, w=THIRD, h=ROW))
        for i, name in enumerate(names)
    ]


def save(workspace: Any) -> str:
    """Creates the workspace or, where there is one of its name, replaces what it shows. Returns its URL."""
    import wandb_workspaces.workspaces as ws

    code = hashlib.sha256(workspace.name.encode()).hexdigest()[:11]  # the view's own name: the same on any machine
    workspace._internal_name = f"nw-{code}-v"
    with contextlib.redirect_stderr(io.StringIO()):
        with contextlib.suppress(ValueError):  # not found: it is made now
            workspace._internal_id = ws.Workspace.from_url(workspace.url)._internal_id
        return workspace.save().url


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entity", required=True, help="the W&B user or team")
    parser.add_argument("--project", required=True, help="the W&B project")
    parser.add_argument("--study", default="", help="show the runs of this study (their group) only")
    parser.add_argument("--print", action="store_true", help="print the model as JSON instead of saving it")
    options = parser.parse_args(argv)
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        workspace = build(options.entity, options.project, options.study)
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is missing; type: pip install -e '.[workspaces]'", file=sys.stderr)
        return 2
    if options.print:
        print(workspace._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=1))
        return 0
    try:
        print(save(workspace))
    except Exception as error:  # no key, no network, no such project: all for the reader to mend
        print(f"error: the workspace is not saved: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
