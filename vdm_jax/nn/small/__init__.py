"""Small networks: of points, encoders, dequantisers, classifiers."""
