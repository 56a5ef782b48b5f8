"""The adapter `microcontroller`: our sensor node on a UART, over pyserial."""
