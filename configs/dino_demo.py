# iBOT without its patch loss (DINO's objective) on the embedded demo set: odis_demo.py but for the object, which it
# does not know.
_base_ = './ibot_demo.py'

model = dict(lambda_patch=0.0)

tunable = _base_.tunable
tunable.pop('model.lambda_patch')
