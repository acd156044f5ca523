# iBOT on the embedded demo set: odis_demo.py without objects and with iBOT's patch loss. Its crops are as large as
# those of the other methods without objects (demo_two_views.py): of crops of ODIS's scale, two of an image share
# nothing (docs/evidence/demo.md).
_base_ = './odis_demo.py'

model = dict(masked_attention=False, lambda_patch=1.0, backbone=dict(img_size=48))
train_dataloader = _base_.train_dataloader
train_dataloader.batch_size = 64  # 36 patches in place of 16
auto_scale_lr = dict(base_batch_size=64)
steps = {step.type: step for step in train_dataloader.dataset.pipeline}
steps['SampleViews'].object_aware = False
steps['SampleViews'].views[0].merge(dict(size=48, scale=(0.2, 0.8)))
del steps
