"""dagger-serve: the line that serves the student or the teacher of a config with vLLM, printed or run.

dagger-serve student student=qwen3_8b engine=vllm              print the line; addresses then go to engine.addresses
dagger-serve teacher teacher=qwen3_coder_30b --run             run it until Ctrl-C
dagger-serve teacher teacher=vllm teacher.model=FOLDER --tensor-parallel-size 4
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from omegaconf import OmegaConf

from dagger_exp.cli.complaints import complain
from dagger_exp.config.binding import bind_node
from dagger_exp.config.composing import compose_checked
from dagger_exp.engines.vllm_server import VllmServer
from dagger_exp.errors import ConfigError, UserError

OF_STUDENTS = ("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_SERVER_DEV_MODE")
"""Variables that let weights be changed."""


def main() -> None:
    """Entry point of the console script."""
    try:
        serve(sys.argv[1:])
    except UserError as error:
        sys.exit(complain(error))


def serve(arguments: Sequence[str]) -> None:
    """Print the line, or become the server."""
    known, rest = _parser().parse_known_args(arguments)
    overrides = [text for text in rest if "=" in text and not text.startswith("-")]
    extra = [text for text in rest if text not in overrides]
    cfg = compose_checked("train", overrides)
    server, command = (_student_line if known.role == "student" else _teacher_line)(cfg)
    command += extra
    if not known.run:
        print(server.shell_line(command))
        return
    server.check_python()
    print(f"dagger-serve: {shlex.join(command)}", file=sys.stderr, flush=True)
    os.execvpe(command[0], command, {**os.environ, **server.variables()})  # noqa: S606 - the line that was shown


def _student_line(cfg: Any) -> tuple[Any, list[str]]:
    from dagger_exp.engines.vllm_weights import BASE

    if "server" not in cfg.engine:
        raise ConfigError("dagger-serve student needs engine=vllm; the engine of this config runs in the process.")
    path = cfg.student.get("path") or cfg.student.get("init")
    if path is None:
        raise ConfigError("this student's weights exist in its run only, which serves them itself; name student.path.")
    settings = _node(cfg, "engine.server")
    bind_node("engine.server", settings)
    server = _server(settings)
    weights, rank = _weights(Path(str(path)))
    if rank is None and cfg.student.finetuning == "lora":
        rank = _node(cfg, "student.lora")["rank"]
    return server, server.command(
        weights,
        name=BASE,
        max_context_tokens=cfg.student.max_context_tokens,
        lora_rank=rank,
        transfer=None if cfg.engine.weights == "disk" else cfg.engine.weights,
        sleeps=cfg.engine.sleeps,
    )


def _node(cfg: Any, path: str) -> dict[str, Any]:
    """Return the keys and values at a path of the config, where somebody may have put a plain value."""
    node = OmegaConf.select(cfg, path)
    if not OmegaConf.is_dict(node):
        shown = "null" if node is None else node
        raise ConfigError(f"{path} is {shown}; leave {path}={shown} out, or set its keys, as in {path}.KEY=VALUE.")
    return cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))


def _weights(path: Path) -> tuple[str, int | None]:
    """Return which weights a server begins with, and the rank of the adapter that a folder or a run has for them."""
    run = path.parent.parent if path.suffix == ".ckpt" else path
    folder = run / "student" if (run / "student").is_dir() else run
    if not (folder / "adapter_config.json").exists():
        if run != path:
            raise ConfigError(f"{path} holds weights that lie in no folder yet: give {run} once it has ended.")
        return str(folder), None
    adapter = json.loads((folder / "adapter_config.json").read_text())
    beside = folder / "base"  # where the run had the only copy
    return str(beside) if beside.is_dir() else adapter["base_model_name_or_path"], adapter["r"]


def _teacher_line(cfg: Any) -> tuple[Any, list[str]]:
    model = OmegaConf.select(cfg, "teacher.model")
    address = str(_node(cfg, "teacher.endpoint")["address"]) if "endpoint" in cfg.teacher else ""
    if address.startswith("https://"):
        raise ConfigError(
            f"teacher.endpoint.address is {address}, which serves itself; for a server of your own choose teacher=vllm."
        )
    if not address or model is None:
        raise ConfigError("dagger-serve teacher needs teacher=vllm teacher.model=FOLDER, or another served teacher.")
    try:
        place, python = urlsplit(address), OmegaConf.select(cfg, "engine.server.python")
        server = TeacherServer(python=python, host=place.hostname or "127.0.0.1", port=place.port or 8000)
    except ValueError as error:
        raise ConfigError(f"teacher.endpoint.address is {address}; write http://HOST:PORT.") from error
    return server, server.command(str(model), name=str(model)) + _tool_arguments(cfg) + _logprob_arguments(cfg)


def _tool_arguments(cfg: Any) -> list[str]:
    """Return what makes a server take the tools of the scaffold, where it has some."""
    from dagger_exp.config.components import make_optional

    scaffold, parser = make_optional(cfg.scaffold), cfg.teacher.get("tool_call_parser")
    if not (scaffold and scaffold.tools and parser):
        return []
    return ["--enable-auto-tool-choice", "--tool-call-parser", str(parser)]


def _logprob_arguments(cfg: Any) -> list[str]:
    """Return what makes a server tell as many of the likeliest tokens as the labels hold."""
    from dagger_exp.rollout.scored import MAX_LOGPROBS

    num_top = cfg.labeler.num_top
    return ["--max-logprobs", str(num_top)] if num_top > MAX_LOGPROBS else []


class TeacherServer(VllmServer):
    """A server whose weights stay as they are, so that nobody may change them from outside."""

    def variables(self) -> dict[str, str]:
        """Return what is set for the server's process."""
        return {name: value for name, value in super().variables().items() if name not in OF_STUDENTS}


def _server(settings: Any) -> VllmServer:
    return VllmServer(**{key: value for key, value in settings.items() if key != "_target_"})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dagger-serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="KEY=VALUE are overrides as of dagger-train; anything else is handed on to vLLM.",
    )
    parser.add_argument("role", choices=["student", "teacher"])
    parser.add_argument("--run", action="store_true", help="become the server instead of printing its line")
    return parser


if __name__ == "__main__":
    main()
