"""One calibration: two models compared call by call, moments matched, corrections tried, the result saved and drawn."""
