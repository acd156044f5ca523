"""Measuring: what a step costs by its shapes, and how long it takes."""

from .cost import StepCost, count_step
from .textbook_ibot import TextbookIBOT

__all__ = ['StepCost', 'TextbookIBOT', 'count_step']
