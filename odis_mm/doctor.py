"""``python -m odis_mm.doctor`` is ``odis-mm doctor``: see :mod:`odis_mm.cli.doctor`."""

from .cli.doctor import main

if __name__ == '__main__':
    main()
