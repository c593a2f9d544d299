"""The shipped specs, built: `mcgen build` of each file in mcgen/specs. The tests hold them equal to their specs."""
