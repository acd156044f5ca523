"""mmengine's default scope, a global that decides in which package's registry a name is looked up."""

from contextlib import contextmanager
from typing import Iterator

from mmengine.registry import DefaultScope


@contextmanager
def scope_of(package: str) -> Iterator[None]:
    """Look names up in a package's registries ('mmpretrain', 'mmdet') for a while, and leave no other scope behind;
    also a decorator.

    A Runner and mmdet's ``DetInferencer`` set the scope of the whole process, and whatever is built after them is
    looked up in mmdet's registries, which do not hold mmpretrain's models.
    """
    with DefaultScope.overwrite_default_scope(package):  # puts back what was there, also of what is set inside
        yield
