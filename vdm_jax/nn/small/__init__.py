"""Small networks: for points, encoders, dequantisers and classifiers."""
