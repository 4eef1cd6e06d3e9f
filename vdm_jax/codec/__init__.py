"""Compression by a diffusion model: the bound as bytes, without loss or with loss.

  stack      an entropy coder that is a stack of bits (asymmetric numeral systems), whitened
  chain      a model as the codec reads it: its grid of levels, its reverse kernels, its tables
  bits_back  images to a stack and back, in the order of Bit-Swap
  rates      the net bits of many images; each image is decoded again
  queue      an entropy coder that is a queue of symbols, for the codecs with loss
  kernels    a model as a progressive codec reads it: a few levels and the kernels between them
  channel    a sample of q, sent as the number of a candidate
  diffc      images with loss, by samples that `channel` sends
  uqdm       images with loss, by universal quantisation
  container  the file, and its checks before decoding
"""
from vdm_jax.codec.bits_back import Coded, decode, encode
from vdm_jax.codec.chain import Chain, chain
from vdm_jax.codec.container import Container, read, write

__all__ = ['Chain', 'Coded', 'Container', 'chain', 'decode', 'encode', 'read', 'write']
