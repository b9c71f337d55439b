"""Many devices and many processes: mesh, shardings, start and agreement."""
