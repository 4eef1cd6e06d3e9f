"""Editing of given images by a trained model: functions of a denoiser, and nothing is trained.

  attention         reads and changes the attention maps of a network
  prompt_to_prompt  Hertz et al. (2022): other words, by the attention to words
  diffedit          Couairon et al. (2023): finds the region to edit, and keeps the rest
  sdedit            Meng et al. (2022): noise is added to an image and removed again
  null_text         Mokady et al. (2023): an image is inverted under guidance
  semantic          Liu et al. (2023): guidance towards a text, an image or a style
  methods           all but the last, by name, as edits of a model

Known pixels are kept by `samplers.inpainting`.
"""
