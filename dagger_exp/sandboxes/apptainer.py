"""Sandboxes that are containers of apptainer, as clusters have it: no daemon, no root.

Written to the documented command line of apptainer 1.2, and tested through a stand-in that accepts these flags and no
others. It was never run against the real program.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from dagger_exp.errors import ConfigError, SandboxError
from dagger_exp.protocols import SandboxSpec
from dagger_exp.sandboxes.limits import Limits
from dagger_exp.sandboxes.pool import Pool
from dagger_exp.sandboxes.process import start_process
from dagger_exp.sandboxes.session import Session, init_command

FLAGS = (
    *("--containall", "--no-home", "--cleanenv", "--no-eval", "--writable-tmpfs", "--net", "--network", "none"),
    *("--no-privs", "--drop-caps", "ALL", "--scratch", "/work", "--pwd", "/work"),
    "--no-init",  # else a process of apptainer is the first, and ours would feel signals from inside
)
ENVIRONMENT = {"HOME": "/tmp", "USER": "agent", "LANG": "C.UTF-8", "TERM": "dumb"}  # noqa: S108 - inside


class ApptainerSandboxes(Pool):
    """Containers without network, capabilities and the user's home; the image needs `python3` and `sh`.

    Processes are counted and their memory is added up by process 1 alone, which looks every few milliseconds.

    Args:
        run_id: of the run that they belong to.
        limits: of each sandbox, but for `disk_mib`: apptainer's own configuration has the size of its memory disk.
        max_live: at the same time, those included that are started ahead.
        num_ready: started ahead, of the spec that was asked for last.
        image: a `.sif` file or a folder, where the env names none.
    """

    def __init__(
        self, *, run_id: str, limits: Limits, max_live: int = 16, num_ready: int = 2, image: str | None = None
    ) -> None:
        super().__init__(run_id=run_id, limits=limits, max_live=max_live, num_ready=num_ready)
        self.image = image

    @property
    def python(self) -> str:
        """The image."""
        return str(self.image)

    def check(self) -> None:
        """Look whether apptainer and the image are there; raises `ConfigError`."""
        if os.getuid() == 0:
            raise ConfigError(
                "sandbox=apptainer is for plain users, since a root inside is one outside too; see docker."
            )
        if shutil.which("apptainer") is None:
            raise ConfigError("sandbox=apptainer needs apptainer: load its module, or install the package apptainer.")
        if self.image is not None and not Path(self.image).exists():
            raise ConfigError(f"sandbox.image is {self.image}, which is not there: apptainer pull NAME.sif SOURCE.")

    async def _start(self, spec: SandboxSpec) -> Session:
        image = spec.image or self.image
        if image is None:
            raise SandboxError("sandbox=apptainer has no image: give sandbox.image=FILE, as the env names none.")
        mounts = [word for source, path in spec.mounts for word in ("--bind", f"{source}:{path}:ro")]
        init = init_command(self.limits, {**ENVIRONMENT, **dict(spec.environment)})
        return await start_process(["apptainer", "exec", *FLAGS, *mounts, image, *init])
