"""Model backends and the zoo. They import `edge_runtime.{ports,types,errors,clock}` and nothing else of the core."""
