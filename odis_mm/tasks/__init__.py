"""Whole jobs on a user's own data, from Python and from the command line: pretrain, finetune, predict."""

from .finetune import Finetuned, finetune
from .predict import predict
from .pretrain import pretrain

__all__ = ['Finetuned', 'finetune', 'predict', 'pretrain']
