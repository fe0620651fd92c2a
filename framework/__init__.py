"""Vision Plugin Framework: any backbone under any vision task, on Lightning."""

__version__ = "0.1.0"
