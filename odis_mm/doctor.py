"""``python -m odis_mm.doctor``: the command line of :mod:`odis_mm.cli.doctor`, which needs nothing but Python to start."""

from .cli.doctor import main

if __name__ == '__main__':
    main()
