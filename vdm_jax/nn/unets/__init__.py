"""U-Nets and RefineNets: one published architecture a file."""
