"""The name the ops are registered under: the package's own, which as a kernel of the hub is not `lasertri`."""

NAMESPACE = __name__.partition(".")[0]
