# iBOT (arXiv 2111.07832) on COCO: ODIS with the whole image as the object and plain cropping. The baseline of every
# comparison.
_base_ = './odis_vits_coco.py'

model = dict(masked_attention=False)
train_dataloader = _base_.train_dataloader
steps = {step.type: step for step in train_dataloader.dataset.pipeline}
steps['SampleViews'].object_aware = False
del steps
