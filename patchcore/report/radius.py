"""Plot of the covering radius of a greedy coreset against its size."""

from pathlib import Path

from patchcore.coreset import Order


def plot_radius(order: Order, path: Path) -> None:
    """Draw the radius after each pick of `order`, on logarithmic axes, to the picture `path`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.loglog(range(1, len(order) + 1), order.radii)
    axes.set(xlabel="patches kept", ylabel="covering radius")
    axes.grid(which="both", alpha=0.3)
    figure.savefig(path)
