"""The same view on W&B: a saved workspace of a project, with the curves of a comparison grouped as it groups them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagger_exp.analysis.failures import RATES
from dagger_exp.analysis.groups import Comparison
from dagger_exp.analysis.wandb_source import first_sentence
from dagger_exp.errors import StoreError, UserError

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

PLOTS = {
    "success": ["eval/success_rate"],
    "failures": [f"eval/{name}" for name in RATES],
    "beta": ["round/beta"],
    "share of student turns": ["rollout/student_turn_rate"],
    "loss": ["round/loss"],
}
INSTALL = 'pip install "dagger-exp[workspaces]"'


def build_workspace(address: str, comparison: Comparison) -> Workspace:
    """Return a workspace that is not saved yet: line plots against the round, a line per group with its spread.

    Args:
        address: `entity/project`, where the runs are.
        comparison: whose differing keys group the runs.

    Raises:
        UserError: the address is none, or the extra `workspaces` is not installed.
    """
    entity, _, project = address.partition("/")
    if not entity or not project or "/" in project:
        raise UserError(f"--wandb {address} names no project: write --wandb ENTITY/PROJECT.")
    try:
        import wandb_workspaces.reports.v2 as reports
        from wandb_workspaces import workspaces
    except ImportError as error:
        raise UserError(f"--wandb needs the package wandb-workspaces: {INSTALL}.") from error
    panels = [
        reports.LinePlot(title=title, x="round", y=list(keys), groupby_aggfunc="mean", groupby_rangefunc="stderr")
        for title, keys in PLOTS.items()
    ]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name="dagger-compare",
        sections=[workspaces.Section(name="dagger-compare", panels=list(panels), is_open=True)],
        settings=workspaces.WorkspaceSettings(x_axis="round"),
        runset_settings=workspaces.RunsetSettings(groupby=[workspaces.Config(key) for key in grouping(comparison)]),
    )


def grouping(comparison: Comparison) -> list[str]:
    """Return the config keys that make the groups of a comparison; of a component its class."""
    known = {key for group in comparison.groups for key in group.settings}
    return [key if key in known else f"{key}._target_" for key in comparison.differing]


def save_workspace(workspace: Workspace) -> str:
    """Save a workspace and return its address.

    Raises:
        StoreError: W&B cannot be reached or does not let us in.
    """
    try:
        return str(workspace.save().url)
    except Exception as error:  # what a server's answer raises is not documented
        raise StoreError(
            f"the workspace cannot be saved on W&B ({first_sentence(error)}): "
            "log in with `wandb login` where there is a network; the files of the comparison are written."
        ) from error
