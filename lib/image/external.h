/* SPDX-License-Identifier: BSD-3-Clause */

/* Which other files an image may make the server open.
 *
 * A qcow2 image names its backing file and its external data file in
 * its own header, so whoever made the image chose those names, while
 * the server opens them with its own rights.  The user says with
 * external-files= where such names may lead.
 */

#ifndef QCOW2_EXTERNAL_H
#define QCOW2_EXTERNAL_H

/* The file that NAME, found in the image NAMING_FILE as the name of its
 * data file, or given by the user, stands for, if
 * RULES allow it: a list that ends with NULL, of which one entry must
 * allow the file:
 *
 *   "none"      allows nothing
 *   "same-dir"  the directory that NAMING_FILE is in, not those below
 *   "any"       allows every file
 *   "/DIR"      everything in that directory and below
 *   an NBD URI  this export, and if it ends in a slash all those whose
 *               URIs begin so and have no query, escape, user or ".."
 *
 * A relative NAME starts at the directory of NAMING_FILE, as given.
 * Directories are compared with all symbolic links resolved, both for
 * the place where NAME is and for what it leads to if it is a link.
 *
 * "any" allows NBD URIs too, "same-dir" and directories do not.
 *
 * On success *PATH is the URI, or is absolute and has no links in it;
 * open it with NOFOLLOW, pass it as NAMING_FILE for what that file names
 * in turn, and free it.  -EPERM: not allowed; -EINVAL: no name of a file;
 * -ENOTSUP: a protocol other than NBD's; -ENOENT and others: it cannot be
 * found.  All are reported.
 */
int external_resolve (const char *naming_file, const char *name,
                      const char *const *rules, char **path);

struct backing_name;

/* The same in two steps for the name of a backing file, which may be in
 * other spellings, too, and say more than a place.  First what it means:
 * 0, or a negative errno (reported).  Then the place, under the rules.
 */
int external_parse_backing (const char *naming_file, const char *name,
                            struct backing_name *parsed);
int external_resolve_backing (const char *naming_file, const char *name,
                              const struct backing_name *parsed,
                              const char *const *rules, char **path);

#endif /* QCOW2_EXTERNAL_H */
