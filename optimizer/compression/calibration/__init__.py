"""What calibration images tell about each layer, and where that is kept."""
