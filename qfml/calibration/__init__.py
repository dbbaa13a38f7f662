"""Models fitted to quotes: surfaces, exact and neural calibration, one at a time or thousands at once."""
