"""Load the libraries faster: no search for garbage meanwhile, and no more of torchmetrics than Lightning needs.

Lightning needs two classes of torchmetrics. Its `__init__` imports every metric, and with them scipy.signal and
scipy.stats, which takes a sixth of the time until a run begins. So the package is at first a module that knows the two
classes only. Any other attribute or submodule executes the real `__init__` in that module, and all is as usual.
"""

from __future__ import annotations

import gc
import logging
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

NAME = "torchmetrics"
HOMES = {"__version__": "__about__", "Metric": "metric", "MetricCollection": "collections"}
"""What Lightning imports, and the submodules that define it."""


@contextmanager
def without_collection() -> Iterator[None]:
    """Import without the garbage collector, which would search a million objects that stay, again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class DeferredPackage(ModuleType):
    """torchmetrics before its `__init__` is executed."""

    lock = threading.RLock()
    _is_loading = False  # or loaded: from then on this is a module as any other

    def __getattr__(self, name: str) -> Any:
        """Import one of the two classes, or the whole package for any other name."""
        if name.startswith("__") and name not in HOMES:
            raise AttributeError(name)  # the import system asks for some, and needs no package for it
        with self.lock:
            if name == "_logger":
                return logging.getLogger(NAME)
            if name in HOMES and not self._is_loading:
                return self.load_class(name)
            self.load()
        if name in self.__dict__:
            return self.__dict__[name]
        raise AttributeError(f"module {NAME!r} has no attribute {name!r}")

    def load_class(self, name: str) -> Any:
        """Import the submodule of a class, and `utilities` before it, as the real `__init__` does."""
        self._is_loading = True
        try:
            import_module(f"{NAME}.utilities" if name != "__version__" else f"{NAME}.__about__")
            return getattr(import_module(f"{NAME}.{HOMES[name]}"), name)
        finally:
            self._is_loading = False

    def load(self) -> None:
        """Execute the real `__init__`, once."""
        with self.lock:
            if self._is_loading:
                return
            self._is_loading = True
            try:
                loader = getattr(self.__spec__, "loader", None)
                assert isinstance(loader, DeferringFinder)
                loader.real.exec_module(self)
            except BaseException:
                self._is_loading = False
                raise


class DeferringFinder:
    """Finds torchmetrics as a `DeferredPackage`, and loads that before any submodule that somebody asks for."""

    real: Any  # the loader of the package

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return how the package is loaded; None for anything else."""
        if name.startswith(f"{NAME}.") and isinstance(package := sys.modules.get(NAME), DeferredPackage):
            package.load()
        spec = PathFinder.find_spec(name, path) if name == NAME else None
        if spec is not None:
            self.real, spec.loader = spec.loader, self  # type: ignore[assignment]  # it need not be a `Loader`
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the package."""
        return DeferredPackage(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Leave the package as it is until it is used."""


if NAME not in sys.modules:
    sys.meta_path.insert(0, DeferringFinder())  # type: ignore[arg-type]  # as above
