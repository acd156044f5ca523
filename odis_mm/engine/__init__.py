"""Training: hooks, loops, optimizer pieces, sharding. Importing it registers them."""

from . import amp, hooks, loops, optim, sharding

__all__ = ['amp', 'hooks', 'loops', 'optim', 'sharding']
