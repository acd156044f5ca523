# iBOT on the embedded demo set: the baseline of odis_demo.py with the same budget and augmentation, and iBOT's patch
# loss.
_base_ = './odis_demo.py'

model = dict(masked_attention=False, lambda_patch=1.0)
train_dataloader = _base_.train_dataloader
steps = {step.type: step for step in train_dataloader.dataset.pipeline}
steps['SampleViews'].object_aware = False
del steps
