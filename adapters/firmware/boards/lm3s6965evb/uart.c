/* UART0 at 115,200 baud, 8N1, on PA0 and PA1: two rings and one interrupt. */
#include "hal.h"
#include "registers.h"

#define DR REG(UART0)
#define FR REG(UART0 + 0x18u)
#define IBRD REG(UART0 + 0x24u)
#define FBRD REG(UART0 + 0x28u)
#define LCRH REG(UART0 + 0x2cu)
#define CTL REG(UART0 + 0x30u)
#define IM REG(UART0 + 0x38u)
#define ICR REG(UART0 + 0x44u)

#define FR_BUSY (1u << 3)
#define FR_RX_EMPTY (1u << 4)
#define FR_TX_FULL (1u << 5)
#define INT_RX (1u << 4 | 1u << 6)
#define INT_TX (1u << 5)
#define DR_OVERRUN 11u
#define RX_RING 256u

static uint8_t rx[RX_RING];
static volatile uint32_t rx_in, rx_out;
static uint8_t tx[HAL_UART_RING];
static volatile uint32_t tx_in, tx_out;
static volatile uint32_t overruns;

/* Fills the device from the ring; the transmit interrupt is on only while something waits, the receive interrupt while there is room. */
static void push(void)
{
    uint32_t enabled = rx_in - rx_out < RX_RING ? INT_RX : 0;
    while (tx_out != tx_in && !(FR & FR_TX_FULL)) {
        DR = tx[tx_out % HAL_UART_RING];
        tx_out++;
    }
    IM = tx_out != tx_in ? enabled | INT_TX : enabled;
}

/* A full ring leaves bytes in the device, which counts those that it loses. */
static void pull(void)
{
    while (!(FR & FR_RX_EMPTY) && rx_in - rx_out < RX_RING) {
        uint32_t byte = DR;
        overruns += (byte >> DR_OVERRUN) & 1u;
        rx[rx_in % RX_RING] = (uint8_t)byte;
        rx_in++;
    }
}

void uart_interrupt(void)
{
    ICR = INT_RX | INT_TX;
    pull();
    push();
}

void uart_start(void)
{
    GPIO_AFSEL(GPIO_A) |= 3u;
    GPIO_DEN(GPIO_A) |= 3u;
    CTL = 0;
    /* 50 MHz / (16 * 115,200) = 27 + 8/64 */
    IBRD = 27;
    FBRD = 8;
    LCRH = 0x70;
    CTL = 0x301;
    IM = INT_RX;
    NVIC_ISER0 = 1u << IRQ_UART0;
}

int uart_waiting(void)
{
    return rx_in != rx_out;
}

void uart_drain(void)
{
    for (uint32_t tries = 0; tries < 1000000 && (FR & FR_BUSY); tries++)
        continue;
}

int hal_uart_read(void)
{
    uint8_t byte;
    if (rx_in == rx_out) {
        irq_off();
        pull();
        push();
        irq_on();
    }
    if (rx_in == rx_out)
        return -1;
    byte = rx[rx_out % RX_RING];
    rx_out++;
    return byte;
}

int hal_uart_write(uint8_t byte)
{
    if (tx_in - tx_out == HAL_UART_RING)
        return 0;
    tx[tx_in % HAL_UART_RING] = byte;
    tx_in++;
    irq_off();
    push();
    irq_on();
    return 1;
}

size_t hal_uart_room(void)
{
    return HAL_UART_RING - (tx_in - tx_out);
}

uint32_t hal_uart_overruns(void)
{
    return overruns;
}
