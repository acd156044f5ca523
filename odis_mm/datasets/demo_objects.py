"""The embedded demo set for pretraining."""

from mmpretrain.registry import DATASETS

from ..utils.errors import MissingFileError
from .demo import DEFAULT_ROOT, render_if_asked
from .objects import ObjectDataset


@DATASETS.register_module()
class DemoObjectDataset(ObjectDataset):
    """``ObjectDataset`` of the demo set, which is rendered on first use.

    Args:
        data_root: Its folder. The set is rendered, with the default parameters, only to the folder that ODIS_DEMO_ROOT
            names (by default data/odis_demo); any other folder is read as it is.
        **kwargs: See :class:`ObjectDataset`.

    Raises:
        MissingFileError: the folder holds no such files.
    """

    def __init__(self, data_root: str = DEFAULT_ROOT, **kwargs):
        rendered = render_if_asked(data_root)
        try:
            super().__init__(data_root=data_root, **kwargs)
        except MissingFileError as error:
            if rendered:
                raise
            told = str(error).rstrip('.')
            raise MissingFileError(
                f'{told}; the demo set itself is rendered to ODIS_DEMO_ROOT or {DEFAULT_ROOT}, nowhere else.'
            ) from None
