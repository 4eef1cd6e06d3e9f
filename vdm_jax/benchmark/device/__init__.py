"""The check of an accelerator: `scripts/device_check.sh`.

It imports neither `ml_collections` nor the packages that read data sets, because a machine on loan
may lack them.  So the network and the optimiser of configs/cifar10/vdm.py are built here out of
their parts, and a test compares them with the config's.

  stages   runs stages one after another, each in a process of its own, and keeps their record
  model    the experiment of configs/cifar10/vdm.py
  images   images of 32 x 32 pixels: CIFAR-10, or what there is instead
  checks   what each stage measures
"""
