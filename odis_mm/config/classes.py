"""Classes by the names that configs give them, and their arguments."""

import inspect
from typing import Any, Iterator, Optional, Set, Tuple

import mmengine.registry
from mmengine.registry import Registry


def find_class(type_: Any) -> Optional[type]:
    """Return the class that a config's ``type`` names, wherever it is registered; None if there is none."""
    if not isinstance(type_, str):
        return type_ if inspect.isclass(type_) else None
    scope, _, name = type_.rpartition('.')
    for registry in registries():
        if name in registry.module_dict and scope in ('', registry.scope):
            found = registry.module_dict[name]
            return found if inspect.isclass(found) else None
    return None


def registries() -> Iterator[Registry]:
    """Yield mmengine's registries and those of the packages in use."""
    for root in vars(mmengine.registry).values():
        if isinstance(root, Registry):
            # only classes of packages in use: importing others to explain an error would take seconds
            yield from (root, *root.children.values())


def arguments_of(cls: Optional[type]) -> Tuple[Set[str], bool]:
    """Return the names of a class's arguments, following **kwargs up the bases; and whether these are all."""
    names: Set[str] = set()
    for base in inspect.getmro(cls) if cls else ():
        if '__init__' in vars(base) and base is not object:
            parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
            names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                return names, True
    return names, False
