"""Chooses a route for each attention of a model, and takes all of them away again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from lit_methods.softmax_approximation import hugging_face, multihead
from lit_methods.softmax_approximation.approximation import Approximation
from lit_methods.softmax_approximation.meters import SavedBytes
from lit_methods.softmax_approximation.saved_tensors import SavedTensors

WRAPPERS = {"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}


class Attachment:
    """Softmax output approximation on one model, from construction until :meth:`remove`.

    Hugging Face models take the first route, ``nn.MultiheadAttention`` the second, every other softmax the third,
    which needs the forward pass to run inside :meth:`step`.

    Args:
        model: The model; parameters, buffers and keys of its state dict stay as they are.
        approximation: The codec, and who watches.
        modules: Patterns (``fnmatch``) of names of modules to cover, with all that is inside them; None for all.
        min_keys: Shorter rows are left alone by the third route.

    Raises:
        ValueError: If a pattern matches no module.
        MisconfigurationException: If a part of the model is wrapped or compiled.
    """

    def __init__(
        self,
        model: nn.Module,
        approximation: Approximation,
        modules: Sequence[str] | None = None,
        *,
        min_keys: int = 64,
    ) -> None:
        check_model(model)
        self.model, self.approximation = model, approximation
        targets = _targets(model, modules)
        self._saved = SavedTensors(approximation, min_keys=min_keys)
        self._routes: list[hugging_face.HuggingFaceRoute | multihead.MultiheadRoute] = []
        self._handles: list[RemovableHandle] = []
        self._scoped = targets is not None
        self._open: ExitStack | None = None
        try:
            self._attach(targets)
        except BaseException:
            self.remove()
            raise

    def _attach(self, targets: list[str] | None) -> None:
        done: list[str] = []
        for name, module in self.model.named_modules():
            if not _inside(name, done) and hugging_face.is_exchangeable(module):
                inner = hugging_face.attention_modules(module)
                chosen = {m: full for n, m in inner.items() if _inside(full := _join(name, n), targets)}
                done.append(name)
                if chosen:
                    self._routes.append(hugging_face.HuggingFaceRoute(module, chosen, self.approximation))
        named = dict(self.model.named_modules())
        chosen = {m: n for n, m in named.items() if multihead.is_exchangeable(m) and _inside(n, targets)}
        if chosen:
            self._routes.append(multihead.MultiheadRoute(chosen, self.approximation))
        for name in targets or ():
            before, after = _scope(self._saved)
            self._handles.append(named[name].register_forward_pre_hook(before))
            self._handles.append(named[name].register_forward_hook(after, always_call=True))

    @property
    def scores_at_hand(self) -> bool:
        """Whether some attention takes a route that has query and key; all others have only the weights."""
        return bool(self._routes)

    def step(self) -> AbstractContextManager[None]:
        """A ``with`` block for a forward pass, or for a forward and a backward pass."""
        return self._step()

    @contextmanager
    def _step(self) -> Iterator[None]:
        self.begin()
        try:
            yield
        finally:
            self.end()

    def begin(self) -> None:
        """What entering :meth:`step` does; a step that is still open ends."""
        self.end()
        with ExitStack() as stack:
            if self.approximation.coverage is not None:
                self.meter = stack.enter_context(SavedBytes())
                stack.enter_context(_names(self.model, self._saved))
            if not self._scoped:
                stack.enter_context(self._saved)
            self._open = stack.pop_all()

    def end(self) -> None:
        """What leaving :meth:`step` does, if one is open."""
        stack, self._open = self._open, None
        if stack is not None:
            stack.close()

    def kept(self) -> int:
        """Bytes that the graph of a recorded step keeps now, but for parameters and buffers."""
        return self.meter.nbytes([*self.model.parameters(), *self.model.buffers()])

    def remove(self) -> None:
        """Leaves the model as it was found."""
        self.end()
        for handle in self._handles:
            handle.remove()
        for route in self._routes:
            route.detach()
        self._handles, self._routes = [], []


def check_model(model: nn.Module) -> None:
    """Refuses models whose modules are not what runs.

    Raises:
        MisconfigurationException: If a module is wrapped or compiled.
    """
    for name, module in model.named_modules():
        where = f"module {name!r}" if name else "the model"
        if any(kind.__name__ in WRAPPERS for kind in type(module).__mro__):
            raise MisconfigurationException(
                f"{where} is wrapped in {type(module).__name__}. Pass the plain module, and let the Trainer's strategy"
                " wrap it."
            )
        if type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None:
            raise MisconfigurationException(
                f"{where} is compiled, and a compiled graph has fixed what it saves. Leave torch.compile out, or use"
                " torch._functorch.config.activation_memory_budget instead of this method."
            )


def _targets(model: nn.Module, patterns: Sequence[str] | None) -> list[str] | None:
    """The outermost modules that match; None for everything."""
    if patterns is None:
        return None
    names = [name for name, _ in model.named_modules() if name]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            shown = ", ".join(names[:8])
            raise ValueError(f"modules={pattern!r} matches no module of {type(model).__name__}; there are {shown} …")
    found: list[str] = []
    for name in names:
        if any(fnmatchcase(name, pattern) for pattern in patterns) and not _inside(name, found):
            found.append(name)
    return found


def _inside(name: str, outer: list[str] | None) -> bool:
    return outer is None or any(name == other or not other or name.startswith(f"{other}.") for other in outer)


def _join(*names: str) -> str:
    return ".".join(name for name in names if name)


def _scope(saved: SavedTensors) -> tuple[Callable[..., None], Callable[..., None]]:
    def before(module: nn.Module, args: Any) -> None:
        saved.__enter__()

    def after(module: nn.Module, args: Any, output: Any) -> None:
        saved.__exit__()

    return before, after


@contextmanager
def _names(model: nn.Module, saved: SavedTensors) -> Iterator[None]:
    """Lets the third route know in which module a softmax runs."""
    names = {module: name for name, module in model.named_modules()}
    running: list[str] = []

    def before(module: nn.Module, args: Any) -> None:
        running.append(names.get(module, ""))

    def after(module: nn.Module, args: Any, output: Any) -> None:
        running.pop()

    handles = register_module_forward_pre_hook(before), register_module_forward_hook(after, always_call=True)
    saved.where = lambda: next((name for name in reversed(running) if name), type(model).__name__)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        saved.where = str
