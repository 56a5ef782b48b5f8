/* What the firmware needs of a board. A new board implements these functions in boards/<name>/ and brings a linker script. */
#ifndef HAL_H
#define HAL_H

#include <stddef.h>
#include <stdint.h>

/* HAL_CLOCK_HZ and HAL_LINES. */
#include "board.h"

#define HAL_FRAME_BYTES 1328u
#define HAL_UART_RING 1024u

enum hal_reset_cause { HAL_POWER_ON = 0, HAL_COMMANDED = 1, HAL_WATCHDOG = 2 };

extern const char hal_board[16];

void hal_init(void);

/* Clock ticks since the start, at HAL_CLOCK_HZ. */
uint64_t hal_ticks(void);
/* Sleeps until an interrupt or for at most `ticks`; returns at once when input waits. */
void hal_idle(uint32_t ticks);

enum hal_reset_cause hal_reset_cause(void);
_Noreturn void hal_reset(void);
/* Must be called at least every 4 s, or the board resets. */
void hal_watchdog_feed(void);

/* UART: received bytes one by one (-1: none); bytes go out in the background (0: no room now). */
int hal_uart_read(void);
int hal_uart_write(uint8_t byte);
/* Bytes that fit now; HAL_UART_RING when all have gone. */
size_t hal_uart_room(void);
uint32_t hal_uart_overruns(void);

/* I2C: 0 or -1 when the device does not answer. */
int hal_i2c_write(uint8_t address, const uint8_t *bytes, size_t count);
int hal_i2c_read(uint8_t address, uint8_t reg, uint8_t *bytes, size_t count);

/* GPIO output lines 0..HAL_LINES-1. */
void hal_line_set(uint32_t line, int level);
int hal_line_get(uint32_t line);

/* Ethernet: length of a received frame copied to `frame` (0: none, longer ones are dropped); a frame to send. */
void hal_net_start(const uint8_t mac[6]);
size_t hal_net_receive(uint8_t frame[HAL_FRAME_BYTES]);
void hal_net_send(const uint8_t *frame, size_t length);

/* The page of flash that is written once per node (64 bytes, PROTOCOL.md). */
const uint8_t *hal_provision_page(void);

#endif
