/* Output lines: 0 is the status LED (PF0), 1 to 3 are PD0 to PD2. */
#include "hal.h"
#include "registers.h"

static const struct {
    uint32_t port;
    uint32_t mask;
} pins[HAL_LINES] = {{GPIO_F, 1u}, {GPIO_D, 1u}, {GPIO_D, 2u}, {GPIO_D, 4u}};

void gpio_start(void)
{
    for (uint32_t line = 0; line < HAL_LINES; line++) {
        GPIO_DATA(pins[line].port, pins[line].mask) = 0;
        GPIO_DIR(pins[line].port) |= pins[line].mask;
        GPIO_DEN(pins[line].port) |= pins[line].mask;
    }
}

void hal_line_set(uint32_t line, int level)
{
    GPIO_DATA(pins[line].port, pins[line].mask) = level ? pins[line].mask : 0;
}

int hal_line_get(uint32_t line)
{
    return GPIO_DATA(pins[line].port, pins[line].mask) != 0;
}
