"""Training: hooks, loops, optimizer pieces, sharding. Importing it registers them."""

from . import hooks, loops, optim, sharding

__all__ = ['hooks', 'loops', 'optim', 'sharding']
