"""Objects for images that have none: found without labels, by a detector, or imported from other tools' annotations."""

from .annotations import FORMATS, load_annotations

__all__ = ['FORMATS', 'load_annotations']
