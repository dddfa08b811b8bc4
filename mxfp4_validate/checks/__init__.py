"""What is asserted about a backend, one function a check. They run in the worker; the catalogue lists them without importing torch."""
