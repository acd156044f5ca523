"""Build step of the wheel: configs/, tools/ and model-index.yml travel inside it, in odis_mm/.mim as in other OpenMMLab
packages."""

import shutil
from pathlib import Path

from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """``build_py``, and copies of configs/ and tools/; an editable install uses those of the checkout."""

    def run(self):
        super().run()
        if not self.editable_mode:
            mim = Path(self.build_lib, 'odis_mm', '.mim')
            for name in ('configs', 'tools'):
                shutil.rmtree(mim / name, ignore_errors=True)
                shutil.copytree(name, mim / name, ignore=shutil.ignore_patterns('__pycache__'))
            shutil.copy('model-index.yml', mim)
