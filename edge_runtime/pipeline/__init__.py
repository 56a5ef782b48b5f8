"""From readings to inferences: windows, preprocessing, triggers, flow."""
