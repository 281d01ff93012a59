"""A Weights & Biases workspace and report for runs of this package, of which the server keeps one each."""

from pathlib import Path
from typing import Any

from rare_lightning.errors import UserError, require
from rare_lightning.evaluation.protocol import TRUTHS
from rare_lightning.files import write_json

TITLE = "Segmentation by resolution"
VIEW = "rarelightning"  # names the workspace in its address; the server knows it again by that


def dashboard(
    entity: str, project: str = "rare-lightning", levels: int = 3, dry_run: bool = False, output: str = "dashboard.json"
) -> None:
    """Create or update a Weights & Biases workspace and a report: Dice by resolution, consistency, images, methods.

    Args:
        entity: User or team that owns the project.
        project: Where the runs are logged.
        levels: Highest resolution level of the runs.
        dry_run: Write what would be sent as JSON, without network or key.
        output: Where a dry run writes to.

    Raises:
        UserError: If wandb-workspaces is not installed, there is no key, or the server refuses.
    """
    if levels < 0:
        raise UserError(f"levels ({levels}) must be 0 or more")
    require("wandb-dashboard", "wandb_workspaces")
    workspace, report = _workspace(entity, project, levels), _report(entity, project, levels)
    if dry_run:
        parts = {"workspace": workspace, "report": report}
        spec = {name: part._to_model().model_dump(mode="json", by_alias=True) for name, part in parts.items()}
        path = Path(output).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(spec, path)
        print(f"{output}: the workspace and the report as they would be sent")
        return
    _send(workspace, report)
    print(f"Workspace: {workspace.url}\nReport: {report.url}")


def _send(workspace: Any, report: Any) -> None:
    import wandb
    import wandb_workspaces.workspaces as ws

    try:
        if not wandb.login(prompt=False):
            raise UserError("there is no Weights & Biases key: wandb login, or set WANDB_API_KEY")
        path = f"{workspace.entity}/{workspace.project}"
        api = wandb.Api()
        if workspace.project in (project.name for project in api.projects(workspace.entity)):
            report.id = next((found.id for found in api.reports(path) if found.display_name == TITLE), "")
        report.save()  # first, since it makes the project where there is none
        workspace._internal_name = f"nw-{VIEW}-v"
        try:
            workspace._internal_id = ws.Workspace.from_url(f"https://wandb.ai/{path}?nw={VIEW}")._internal_id
        except ValueError:  # there is none yet
            workspace._internal_id = ""
        workspace.save()
    except UserError:
        raise
    except Exception as error:  # whatever the network and the server raise
        raise UserError(f"Weights & Biases refused the dashboard: {' '.join(str(error).split())}") from error


def _workspace(entity: str, project: str, levels: int) -> Any:
    import wandb_workspaces.expr as expr
    import wandb_workspaces.workspaces as ws

    sections = [ws.Section(name=name, panels=panels, is_open=True) for name, panels in _panels(levels).items()]
    by_method = ws.RunsetSettings(groupby=[expr.Metric("Name")])
    return ws.Workspace(entity=entity, project=project, name=TITLE, sections=sections, runset_settings=by_method)


def _report(entity: str, project: str, levels: int) -> Any:
    import wandb_workspaces.reports.v2 as wr

    # Without entity and project it shows the report's own, and need not ask the server for its number.
    runs = wr.Runset(name="methods", groupby=["Name"])
    blocks: list[Any] = [wr.P("Runs of one name count as one method. Levels double the voxel spacing.")]
    for name, panels in _panels(levels).items():
        blocks += [wr.H2(name), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(entity=entity, project=project, title=TITLE, blocks=blocks, width="fluid")


def _panels(levels: int) -> dict[str, list[Any]]:
    """Section -> panels."""
    import wandb_workspaces.reports.v2 as wr

    every = range(levels + 1)

    def curve(title: str, names: list[str], **options: Any) -> Any:
        return wr.LinePlot(title=title, x="trainer/global_step", y=names, **options)

    return {
        "Dice by resolution": [
            *(
                wr.BarPlot(
                    title=f"Test Dice by level, {truth} truth",
                    metrics=[f"test/{truth}/dice/level_{level}" for level in every],
                    range_x=(0, 1),
                )
                for truth in reversed(TRUTHS)
            ),
            *(curve(f"Validation Dice, level {level}", [f"val/dice/level_{level}"], range_y=(0, 1)) for level in every),
        ],
        "Gateways and encoder": [
            curve(f"Consistency, level {level}", [f"{stage}/level_{level}/consistency" for stage in ("train", "val")])
            for level in every[1:]
        ],
        "Training": [
            curve("Loss", ["train/loss_epoch", "val/loss"]),
            curve("Learning rate", ["train/learning_rate"]),
            curve("Patches per second", ["train/patches_per_second"]),
        ],
        "Images": [
            wr.MediaBrowser(
                title="Validation cases as training goes on", media_keys=["val/slices/case_1", "val/slices/case_2"]
            ),
            wr.WeavePanelSummaryTable(table_name="test/cases", layout=wr.Layout(w=24, h=16)),
        ],
        "Comparison of methods": [
            wr.ScatterPlot(
                title="Dice at the coarsest and the finest level",
                x=f"test/fine/dice/level_{levels}",
                y="test/fine/dice/level_0",
            ),
            wr.RunComparer(diff_only="split"),
        ],
    }
