# iBOT on 200 to 5,000 images of one's own: the whole image as the object, plain crops, and the patch loss.
_base_ = './odis_small.py'

model = dict(masked_attention=False, lambda_patch=1.0)
train_dataloader = _base_.train_dataloader
next(step for step in train_dataloader.dataset.pipeline if step.type == 'SampleViews').object_aware = False
