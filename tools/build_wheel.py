"""Build step of the wheel: configs/ and tools/ travel inside it, in odis_mm/.mim as in other OpenMMLab packages."""

import shutil
from pathlib import Path

from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """``build_py``, and copies of configs/ and tools/; an editable install uses those of the checkout."""

    def run(self):
        super().run()
        if not self.editable_mode:
            for name in ('configs', 'tools'):
                target = Path(self.build_lib, 'odis_mm', '.mim', name)
                shutil.rmtree(target, ignore_errors=True)
                shutil.copytree(name, target, ignore=shutil.ignore_patterns('__pycache__'))
