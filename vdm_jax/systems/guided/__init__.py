"""Systems for guidance: training without labels, classifiers of clean and of noisy images."""
