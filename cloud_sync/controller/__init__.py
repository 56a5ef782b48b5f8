"""The controller: an application of its own that stores what gateways report and acknowledges after its commit."""
