"""One module for each library; each has a class `Index` that fulfils systems.base.Wrapper."""
