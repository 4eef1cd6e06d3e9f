"""U-Nets and RefineNets: each file has one published architecture."""
