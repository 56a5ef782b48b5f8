/* I2C0 as master at 100 kHz on PB2 and PB3. */
#include "hal.h"
#include "registers.h"

#define MSA REG(I2C0)
#define MCS REG(I2C0 + 0x04u)
#define MDR REG(I2C0 + 0x08u)
#define MTPR REG(I2C0 + 0x0cu)
#define MCR REG(I2C0 + 0x20u)

#define RUN 1u
#define START 2u
#define STOP 4u
#define ACK 8u
#define BUSY 1u
#define ERROR 2u
#define READ 1u
#define MOST_TRIES 100000u

void i2c_start(void)
{
    GPIO_AFSEL(GPIO_B) |= 0x0cu;
    GPIO_ODR(GPIO_B) |= 0x08u;
    GPIO_DEN(GPIO_B) |= 0x0cu;
    MCR = 0x10;
    /* 50 MHz / (2 * 10 * (24 + 1)) = 100 kHz */
    MTPR = 24;
}

/* One step on the bus; an error or a device that holds the clock for ever ends in a stop. */
static int step(uint32_t command)
{
    uint32_t tries = 0;
    MCS = command;
    while (MCS & BUSY)
        if (++tries == MOST_TRIES)
            return -1;
    if (!(MCS & ERROR))
        return 0;
    MCS = STOP;
    return -1;
}

int hal_i2c_write(uint8_t address, const uint8_t *bytes, size_t count)
{
    MSA = (uint32_t)address << 1;
    for (size_t i = 0; i < count; i++) {
        MDR = bytes[i];
        if (step(RUN | (i == 0 ? START : 0) | (i + 1 == count ? STOP : 0)) != 0)
            return -1;
    }
    return 0;
}

int hal_i2c_read(uint8_t address, uint8_t reg, uint8_t *bytes, size_t count)
{
    MSA = (uint32_t)address << 1;
    MDR = reg;
    /* A stop, not a repeated start, which QEMU does not know; a register pointer stays until it is written. */
    if (step(RUN | START | STOP) != 0)
        return -1;
    MSA = (uint32_t)address << 1 | READ;
    for (size_t i = 0; i < count; i++) {
        if (step(RUN | (i == 0 ? START : 0) | (i + 1 == count ? STOP : ACK)) != 0)
            return -1;
        bytes[i] = (uint8_t)MDR;
    }
    return 0;
}
