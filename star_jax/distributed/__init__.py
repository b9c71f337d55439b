"""Several devices and several processes: mesh, shardings, start-up and agreement."""
