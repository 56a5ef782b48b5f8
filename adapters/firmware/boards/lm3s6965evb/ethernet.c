/* The Ethernet MAC of the LM3S6965: one frame at a time through its FIFOs, an interrupt only to end a sleep. */
#include "hal.h"
#include "registers.h"

#define IACK REG(ETHERNET)
#define IM REG(ETHERNET + 0x04u)
#define RCTL REG(ETHERNET + 0x08u)
#define TCTL REG(ETHERNET + 0x0cu)
#define DATA REG(ETHERNET + 0x10u)
#define IA0 REG(ETHERNET + 0x14u)
#define IA1 REG(ETHERNET + 0x18u)
#define THR REG(ETHERNET + 0x1cu)
#define NP REG(ETHERNET + 0x34u)
#define TR REG(ETHERNET + 0x38u)

#define RX_INTERRUPT 1u
#define FRAME_HEADER 14u
#define LENGTH_AND_CRC 6u
#define LONGEST_WAIT 100000u

void ethernet_interrupt(void)
{
    IM = 0;
    IACK = RX_INTERRUPT;
}

int ethernet_waiting(void)
{
    return (NP & 0x3fu) != 0;
}

/* Just before a sleep: an interrupt for a frame that was taken already only ends one sleep too many, never leaves it deaf. */
void ethernet_listen(void)
{
    IM = RX_INTERRUPT;
}

void hal_net_start(const uint8_t mac[6])
{
    IA0 = mac[0] | (uint32_t)mac[1] << 8 | (uint32_t)mac[2] << 16 | (uint32_t)mac[3] << 24;
    IA1 = mac[4] | (uint32_t)mac[5] << 8;
    THR = 0x3f;
    TCTL = 0x17;
    RCTL = 0x10;
    RCTL = 0x09;
    IM = RX_INTERRUPT;
    NVIC_ISER1 = 1u << (IRQ_ETHERNET - 32u);
}

/* The FIFO gives words: two bytes of length (with itself and the CRC), then the frame. */
size_t hal_net_receive(uint8_t frame[HAL_FRAME_BYTES])
{
    uint32_t word, stored, length;
    if (!ethernet_waiting())
        return 0;
    word = DATA;
    stored = word & 0xffffu;
    length = stored > LENGTH_AND_CRC ? stored - LENGTH_AND_CRC : 0;
    word >>= 16;
    for (uint32_t at = 2; at < stored; at++) {
        if (at % 4 == 0)
            word = DATA;
        if (at - 2 < HAL_FRAME_BYTES)
            frame[at - 2] = (uint8_t)word;
        word >>= 8;
    }
    return length > HAL_FRAME_BYTES ? 1 : length;
}

void hal_net_send(const uint8_t *frame, size_t length)
{
    uint32_t word = (uint32_t)(length - FRAME_HEADER) & 0xffffu;
    uint32_t at = 2;
    for (uint32_t tries = 0; tries < LONGEST_WAIT && (TR & 1u); tries++)
        continue;
    for (size_t i = 0; i < length; i++) {
        word |= (uint32_t)frame[i] << (8 * (at % 4));
        if (++at % 4 == 0) {
            DATA = word;
            word = 0;
        }
    }
    if (at % 4 != 0)
        DATA = word;
    TR = 1;
}
