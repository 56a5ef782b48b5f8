"""The firmware of our own sensor node, in C, and what builds it. See PROTOCOL.md and docs/adapters/node-firmware.md."""
