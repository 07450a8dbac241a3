/* SPDX-License-Identifier: BSD-3-Clause */

/* Does the guest flush after each write?  See habit.c. */

#ifndef QCOW2_HABIT_H
#define QCOW2_HABIT_H

#include <stdatomic.h>
#include <stdbool.h>

/* All zero: no. */
struct habit {
  atomic_uint flushes, writes;  /* since it was last judged */
  atomic_bool each;             /* as it was found then */
};

/* The guest flushed. */
void habit_flushed (struct habit *h);

/* It wrote, in place.  True: it will probably flush next. */
bool habit_wrote (struct habit *h);

#endif /* QCOW2_HABIT_H */
