/* SPDX-License-Identifier: BSD-3-Clause */

/* Between the files that parse the names of backing files. */

#ifndef QCOW2_BACKING_NAME_INTERNAL_H
#define QCOW2_BACKING_NAME_INTERNAL_H

#include "backing-name.h"

/* The way out that every refusal ends with. */
#define GIVE_ANOTHER "give backing-file=FILE or backing-file=URI instead"
#define EXPORT_IT "export it with qemu-nbd or nbdkit and give "         \
  "backing-file=URI"

/* backing-name-json.c: what follows "json:". */
int backing_name_json (const char *text, struct backing_name *n,
                       struct format_error *e);

/* backing-name-nbd.c: what follows "nbd:", in QEMU's older spelling. */
int backing_name_nbd (const char *text, struct backing_name *n,
                      struct format_error *e);

/* backing-name-nbd.c: let N be the export EXPORT (NULL: the default one)
 * of a server at a TCP port, a UNIX domain socket, a VSOCK port.
 */
int backing_name_tcp (const char *host, const char *port,
                      const char *export, struct backing_name *n,
                      struct format_error *e);
int backing_name_unix (const char *socket, const char *export,
                       struct backing_name *n, struct format_error *e);
int backing_name_vsock (const char *cid, const char *port,
                        const char *export, struct backing_name *n,
                        struct format_error *e);

/* backing-name.c: let N be the file NAME. */
int backing_name_file (const char *name, struct backing_name *n,
                       struct format_error *e);

#endif /* QCOW2_BACKING_NAME_INTERNAL_H */
