"""Whole jobs on a user's own data, from Python and from the command line: pretrain, finetune, predict."""
