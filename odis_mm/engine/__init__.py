"""Training: hooks, loops, optimizer pieces, sharding. Importing it registers them."""

from . import hooks, log, loops, optim, sharding

__all__ = ['hooks', 'log', 'loops', 'optim', 'sharding']
