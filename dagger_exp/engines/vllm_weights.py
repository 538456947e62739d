"""How do weights reach a vLLM server? As an adapter or whole in a folder that both see, or from GPU to GPU."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from dagger_exp.engines.endpoint import Endpoint, TransientError
from dagger_exp.engines.vllm_server import served_rank
from dagger_exp.errors import ConfigError, EngineError

BASE = "student"
"""Name under which the server knows the weights that it was started with, and those that take their place."""
TRANSFERS = ("nccl", "ipc")


class Servable(Protocol):
    """What a server must know of a student."""

    @property
    def source(self) -> str | None:
        """Folder or hub name of its untrained weights; None where they exist in memory only."""
        ...

    @property
    def max_context_tokens(self) -> int: ...

    @property
    def lora_rank(self) -> int | None:
        """Rank of its adapter; None where all weights are trained."""
        ...

    def save_base(self, folder: Path) -> None:
        """Write a Hugging Face folder with all weights but an adapter's."""
        ...


class Way(Protocol):
    """One way on which weights reach servers."""

    name: str
    """Under which requests ask for the weights that were sent last."""

    async def send(self, version: int, weights: Any, endpoints: Sequence[Endpoint]) -> None:
        """Have all servers serve these weights, a live module; raises `ConfigError` or `EngineError`."""
        ...

    async def send_again(self, endpoint: Endpoint) -> None:
        """Have a server that was started again serve what was sent last."""
        ...


class Adapters:
    """A LoRA student's adapter, saved and loaded under a name made of its run, its version and its content.

    So neither the server nor its prefix cache can take an old one for it.

    Args:
        folder: for the adapters; servers must see it.
        rank: of the adapter.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self.rank, self.name, self._path = folder, rank, BASE, folder
        self._run = _digest(str(folder.resolve()).encode())  # another run has another folder

    async def send(self, version: int, weights: Any, endpoints: Sequence[Endpoint]) -> None:
        """Save the adapter, have it loaded, and the one before unloaded."""
        path = self.folder / str(version)
        weights.save_pretrained(path)
        adapter = (path / "adapter_model.safetensors").read_bytes()
        self.name, self._path = f"{self._run}-v{version}-{_digest(adapter)}", path
        for endpoint in endpoints:
            await self.send_again(endpoint)
            await self._unload_others(endpoint)
        for old in self.folder.iterdir():
            if old.name != str(version):
                shutil.rmtree(old)

    async def _unload_others(self, endpoint: Endpoint) -> None:
        """Have a server drop the run's earlier adapters, also those that it had loaded before it was killed."""
        for name in await asyncio.to_thread(endpoint.models):
            if not name.startswith(self._run) or name == self.name:
                continue
            try:
                await endpoint.post("/v1/unload_lora_adapter", {"lora_name": name})
            except EngineError as error:
                if "cannot be found" not in str(error):  # it was unloaded, but the answer was lost
                    raise

    async def send_again(self, endpoint: Endpoint) -> None:
        """Have a server load the adapter of this version."""
        path = str(self._path.resolve())
        try:
            await endpoint.post("/v1/load_lora_adapter", {"lora_name": self.name, "lora_path": path})
        except EngineError as error:
            if "already been loaded" in str(error):  # by a run that is resumed here; the same bytes
                return
            if isinstance(error, TransientError):
                raise
            raise ConfigError(
                f"{error}; start the server with --enable-lora --max-lora-rank {served_rank(self.rank)} on a disk that "
                f"has {path}, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True."
            ) from error


class Reloading:
    """All weights, saved and reloaded from a disk that both see.

    Args:
        student: saves them.
        folder: for the weights; servers must see it.
    """

    name = BASE

    def __init__(self, student: Servable, folder: Path) -> None:
        self.student, self.folder = student, folder

    async def send(self, version: int, weights: Any, endpoints: Sequence[Endpoint]) -> None:
        """Save the weights and have them loaded."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.student.save_base(self.folder)
        await asyncio.gather(*map(self.send_again, endpoints))

    async def send_again(self, endpoint: Endpoint) -> None:
        """Have a server load what was saved."""
        path = {"weights_path": str(self.folder.resolve())}
        await commanded(endpoint, "/collective_rpc", {"method": "reload_weights", "kwargs": path})
        await commanded(endpoint, "/reset_prefix_cache", {})


class Transfer:
    """All weights from GPU to GPU by vLLM's own weight transfer. Not run: no GPU was there.

    It needs vLLM in this process's environment, and servers that were started for it: the line of `dagger-serve` says
    so. Each server is a group of its own with this process as its first member.

    Args:
        backend: `nccl` between different GPUs, also of several machines; `ipc` where both are on the same GPU.
    """

    name = BASE

    def __init__(self, backend: str) -> None:
        self.backend, self._senders = backend, dict[str, Any]()

    def check(self) -> None:
        """Look for a GPU and for vLLM before a server is started; raises `ConfigError`."""
        import torch

        if not torch.cuda.is_available():
            raise ConfigError(
                f"engine.weights={self.backend} sends weights from GPU to GPU, and this machine has none: set "
                "engine.weights=disk."
            )
        if importlib.util.find_spec("vllm") is None:
            raise ConfigError(
                f'engine.weights={self.backend} needs vLLM here too: pip install "dagger-exp[vllm]", or set '
                "engine.weights=disk."
            )

    async def send(self, version: int, weights: Any, endpoints: Sequence[Endpoint]) -> None:
        """Send the weights to one server after the other."""
        from vllm.distributed.weight_transfer import ModuleSource  # pyright: ignore[reportMissingImports]

        for endpoint in endpoints:
            source = ModuleSource(weights)
            try:
                if endpoint.address not in self._senders:
                    self._senders[endpoint.address] = await self._sender(endpoint, source)
                sender = self._senders[endpoint.address]
                sender.source = source
                sender.send_weights()
            except Exception as error:  # of vLLM, requests, NCCL or CUDA: each has errors of its own
                self._senders.pop(endpoint.address, None)
                said = " ".join(str(error).split())[:300]
                raise EngineError(f"{endpoint.address} did not take the weights by {self.backend}: {said}") from error
            await commanded(endpoint, "/reset_prefix_cache", {})

    async def send_again(self, endpoint: Endpoint) -> None:
        """Do nothing: a server that was started again is noticed by the next probe."""

    async def _sender(self, endpoint: Endpoint, source: Any) -> Any:
        """Meet a server: both enter the same group."""
        from vllm.distributed.weight_transfer import (  # pyright: ignore[reportMissingImports]
            HTTPVLLMWeightSyncClient,
            WeightTransferTrainerFactory,
        )

        info = _ipc() if self.backend == "ipc" else await _nccl(endpoint)
        client = HTTPVLLMWeightSyncClient(endpoint.address)
        return WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _ipc() -> Any:
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo  # pyright: ignore[reportMissingImports]

    return IPCTrainerInitInfo(rank=0, packed=True)  # through a buffer, not a second copy of all weights


async def _nccl(endpoint: Endpoint) -> Any:
    from vllm.distributed.weight_transfer.nccl_engine import (  # pyright: ignore[reportMissingImports]
        NCCLTrainerInitInfo,
    )
    from vllm.utils.network_utils import get_ip, get_open_port  # pyright: ignore[reportMissingImports]

    host = urlsplit(endpoint.address).hostname
    return NCCLTrainerInitInfo(
        rank=0,
        master_address=host if host in ("127.0.0.1", "localhost") else get_ip(),
        master_port=get_open_port(),
        world_size=1 + (await endpoint.get("/get_world_size"))["world_size"],
    )


async def commanded(endpoint: Endpoint, path: str, body: dict[str, Any]) -> None:
    """Post what a server obeys in vLLM's development mode only; raises `ConfigError` where it is not in it."""
    try:
        await endpoint.post(path, body)
    except EngineError as error:
        if "answers 404" not in str(error):
            raise
        raise ConfigError(
            f"{endpoint.address} has no {path}: start it with the line that dagger-serve prints."
        ) from error
