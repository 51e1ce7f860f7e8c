"""The simulated machine: SimPy processes for the engine, the device and the host link."""
