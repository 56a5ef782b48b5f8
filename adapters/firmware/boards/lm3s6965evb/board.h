/* What the firmware must know of this board when it is compiled. */
#ifndef BOARD_H
#define BOARD_H

/* Ticks of hal_ticks in a second. */
#define HAL_CLOCK_HZ 50000000u
/* Output lines, at most 10. */
#define HAL_LINES 4u

#endif
