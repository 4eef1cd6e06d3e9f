"""Systems whose data are no images: forecasts of time series."""
