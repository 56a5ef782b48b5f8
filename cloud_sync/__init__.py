"""Gateway to controller: messages, session, transports. It imports `edge_runtime.{ports,types,errors,clock}` of the core."""
