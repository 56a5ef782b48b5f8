/* A board whose inputs come from standard input, one record a turn: kind, length (u16), bytes.
 *
 * Kinds: 0 bytes on the UART, 1 an Ethernet frame, 2 milliseconds that pass (u16), 3 the UART's far end reads (1) or does not (0).
 * At the end of the input it prints: resets, turns, bytes sent, frames sent, levels of the lines, the longest turn in milliseconds. A reset
 * starts the program anew; unlike a board's it leaves all of its memory, so a reset that was wanted is wanted again after the next reply.
 */
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hal.h"

#define RECORD 65536u

const char hal_board[16] = "host";

static uint8_t record[RECORD], frame[RECORD], page[64];
static size_t waiting, taken, frame_bytes;
static uint64_t ticks = 1, began, longest;
static int reads = 1;
static uint8_t levels[HAL_LINES];
static size_t ring;
static unsigned long resets, turns, sent, frames;
static jmp_buf start;

int firmware_main(void);

int main(void)
{
    setjmp(start);
    return firmware_main();
}

static void finish(void)
{
    printf("%lu %lu %lu %lu %u%u%u%u %lu\n", resets, turns, sent, frames, levels[0], levels[1], levels[2], levels[3],
           (unsigned long)(longest * 1000 / HAL_CLOCK_HZ));
    exit(0);
}

static int next_record(void)
{
    uint8_t head[3];
    if (fread(head, 1, 3, stdin) != 3)
        return 0;
    waiting = head[1] | (size_t)head[2] << 8;
    taken = 0;
    if (fread(record, 1, waiting, stdin) != waiting)
        return 0;
    if (head[0] == 1) {
        memcpy(frame, record, waiting);
        frame_bytes = waiting;
    } else if (head[0] == 2) {
        ticks += (record[0] | (uint64_t)record[1] << 8) * (HAL_CLOCK_HZ / 1000u);
        began = ticks;
    } else if (head[0] == 3) {
        reads = record[0];
    }
    if (head[0] != 0)
        waiting = 0;
    return 1;
}

void hal_init(void)
{
}

uint64_t hal_ticks(void)
{
    return ticks += 20;
}

void hal_idle(uint32_t wanted)
{
    (void)wanted;
    if (ticks - began > longest && turns > 0)
        longest = ticks - began;
    began = ticks;
    turns++;
    if (reads)
        ring = 0;
    if (taken < waiting)
        return;
    if (!next_record())
        finish();
}

enum hal_reset_cause hal_reset_cause(void)
{
    return HAL_POWER_ON;
}

void hal_reset(void)
{
    resets++;
    longjmp(start, 1);
}

void hal_watchdog_feed(void)
{
}

int hal_uart_read(void)
{
    return taken < waiting ? record[taken++] : -1;
}

int hal_uart_write(uint8_t byte)
{
    (void)byte;
    if (ring == HAL_UART_RING) {
        if (!reads)
            return 0;
        ring = 0;
    }
    ring++;
    sent++;
    return 1;
}

size_t hal_uart_room(void)
{
    if (reads)
        ring = 0;
    return HAL_UART_RING - ring;
}

uint32_t hal_uart_overruns(void)
{
    return 0;
}

int hal_i2c_write(uint8_t address, const uint8_t *bytes, size_t count)
{
    (void)bytes;
    return address == 0x48 && count > 0 && ticks % 7 != 0 ? 0 : -1;
}

int hal_i2c_read(uint8_t address, uint8_t reg, uint8_t *bytes, size_t count)
{
    (void)reg;
    memset(bytes, (int)(ticks >> 9), count);
    return address == 0x48 && ticks % 11 != 0 ? 0 : -1;
}

void hal_line_set(uint32_t line, int level)
{
    levels[line] = (uint8_t)level;
}

int hal_line_get(uint32_t line)
{
    return levels[line];
}

void hal_net_start(const uint8_t mac[6])
{
    (void)mac;
}

size_t hal_net_receive(uint8_t to[HAL_FRAME_BYTES])
{
    size_t count = frame_bytes > HAL_FRAME_BYTES ? 1 : frame_bytes;
    memcpy(to, frame, count);
    frame_bytes = 0;
    return count;
}

/* Copies every byte, so that the sanitizer sees whether it may. */
void hal_net_send(const uint8_t *from, size_t length)
{
    uint8_t *copy = malloc(length);
    memcpy(copy, from, length);
    free(copy);
    frames++;
}

const uint8_t *hal_provision_page(void)
{
    return page;
}
