"""Contract suites and fakes for authors of adapters, backends and transports."""
