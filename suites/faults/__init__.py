"""Would the suites see a fault? Deliberate faults, each of which must be caught."""
