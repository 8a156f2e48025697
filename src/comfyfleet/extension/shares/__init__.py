"""Parts of a prompt's graph as units: shares of a collector, slices, branches."""
