"""Systems that learn the score of noisy data by a weighted or matched objective."""
