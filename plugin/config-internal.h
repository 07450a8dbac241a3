/* SPDX-License-Identifier: BSD-3-Clause */

/* Between the files that know the parameters, config*.c.  A parameter is
 * set by a function that returns 0, or -1 after an error that names the
 * parameter, the value and what is allowed.
 */

#ifndef QCOW2_CONFIG_INTERNAL_H
#define QCOW2_CONFIG_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "plugin.h"

struct parameter {
  const char *key;
  int (*set) (const char *key, const char *value);
};

/* The one called KEY of a table that ends with a NULL; or NULL. */
const struct parameter *config_find (const struct parameter *table,
                                     const char *key);

/* Values as words. */
struct choice {
  const char *word;
  uint32_t value;
};
extern const struct choice config_on_off[];

/* Report that VALUE is not what is ALLOWED; -1. */
int config_bad_value (const char *key, const char *value,
                      const char *allowed);

/* KEY's value must be one of the words of CHOICES. */
int config_choice (const char *key, const char *value,
                   const struct choice *choices, uint32_t *r);

/* A size in bytes. */
int config_size (const char *key, const char *value, uint64_t *r);

/* config-create.c: like those of config.c, for what a new image is like. */
void config_create_init (void);
const struct parameter *config_create_find (const char *key);
int config_create_complete (void);

/* config-passphrase.c: passphrase=, backing-passphrase=. */
int config_set_passphrase (const char *key, const char *value);
int config_set_backing_passphrase (const char *key, const char *value);

#endif /* QCOW2_CONFIG_INTERNAL_H */
