/* Registers of the Stellaris LM3S6965 that the drivers use (its data sheet, rev. 2012, and the ARMv7-M manual). */
#ifndef REGISTERS_H
#define REGISTERS_H

#include <stdint.h>

#define REG(address) (*(volatile uint32_t *)(address))

/* Processor. */
#define SYST_CSR REG(0xe000e010u)
#define SYST_RVR REG(0xe000e014u)
#define SYST_CVR REG(0xe000e018u)
#define NVIC_ISER0 REG(0xe000e100u)
#define NVIC_ISER1 REG(0xe000e104u)
#define SCB_ICSR REG(0xe000ed04u)
#define SCB_AIRCR REG(0xe000ed0cu)
#define ICSR_PENDSTSET (1u << 26)
#define AIRCR_RESET 0x05fa0004u

/* System control. */
#define SYSCTL_RIS REG(0x400fe050u)
#define SYSCTL_RESC REG(0x400fe05cu)
#define SYSCTL_RCC REG(0x400fe060u)
#define SYSCTL_RCGC0 REG(0x400fe100u)
#define SYSCTL_RCGC1 REG(0x400fe104u)
#define SYSCTL_RCGC2 REG(0x400fe108u)

#define WATCHDOG 0x40000000u
#define GPIO_A 0x40004000u
#define GPIO_B 0x40005000u
#define GPIO_D 0x40007000u
#define GPIO_F 0x40025000u
#define UART0 0x4000c000u
#define I2C0 0x40020000u
#define TIMER0 0x40030000u
#define ETHERNET 0x40048000u

#define IRQ_UART0 5u
#define IRQ_WATCHDOG 18u
#define IRQ_TIMER0 19u
#define IRQ_ETHERNET 42u

#define GPIO_DATA(port, mask) REG((port) + ((mask) << 2))
#define GPIO_DIR(port) REG((port) + 0x400u)
#define GPIO_AFSEL(port) REG((port) + 0x420u)
#define GPIO_ODR(port) REG((port) + 0x50cu)
#define GPIO_DEN(port) REG((port) + 0x51cu)

static inline void irq_off(void)
{
    __asm__ volatile("cpsid i" ::: "memory");
}

static inline void irq_on(void)
{
    __asm__ volatile("cpsie i" ::: "memory");
}

/* Resets after a fault or a hang: the next boot tells it from a command. */
_Noreturn void reset_failed(void);

void uart_start(void);
void uart_interrupt(void);
int uart_waiting(void);
void uart_drain(void);
void i2c_start(void);
void gpio_start(void);
void ethernet_interrupt(void);
int ethernet_waiting(void);
void ethernet_listen(void);

#endif
