# SPDX-License-Identifier: BSD-3-Clause
#
# What every Makefile.am begins with.

# The end of every list, so that each line of it can end alike.
NULL =

CLEANFILES = *~
DISTCLEANFILES =
EXTRA_DIST =

AM_CFLAGS = \
	$(BASE_CFLAGS) \
	$(WARNINGS_CFLAGS) \
	$(SANITIZER_CFLAGS) \
	$(NULL)
AM_CPPFLAGS = -D_FILE_OFFSET_BITS=64
AM_LDFLAGS =

# Which headers a room may see: these lists keep the includes pointing
# one way, plugin and tools -> image -> overlap, storage, crypt, format -> base;
# crypt sees format, too.
# (-iquote, because a header of ours may bear the name of a system's.)
SEES_BASE = -iquote $(top_srcdir)/lib/base
SEES_ALL = \
	$(SEES_BASE) \
	-iquote $(top_srcdir)/lib/format \
	-iquote $(top_srcdir)/lib/crypt \
	-iquote $(top_srcdir)/lib/storage \
	-iquote $(top_srcdir)/lib/overlap \
	-iquote $(top_srcdir)/lib/image \
	$(NULL)

LIBBASE = $(top_builddir)/lib/base/libqcow2base.la
LIBFORMAT = $(top_builddir)/lib/format/libqcow2format.la
LIBCRYPT = $(top_builddir)/lib/crypt/libqcow2crypt.la
LIBSTORAGE = $(top_builddir)/lib/storage/libqcow2storage.la
LIBOVERLAP = $(top_builddir)/lib/overlap/libqcow2overlap.la
LIBIMAGE = $(top_builddir)/lib/image/libqcow2image.la
LIBALL = \
	$(LIBIMAGE) \
	$(LIBOVERLAP) \
	$(LIBSTORAGE) \
	$(LIBCRYPT) \
	$(LIBFORMAT) \
	$(LIBBASE) \
	$(NULL)

# Tests exit with 0, 1 or 77 (passed, failed, skipped).  The script
# "run" in the top of the build tree sets their environment.  TESTS has
# all of a folder; QUICK_TESTS, THREAD_TESTS and SMOKE_TESTS have some of
# them, for make check-quick, check-threads and check-smoke.  Of the
# programs that tests need, the last two build BUILT_FOR_THREADS and
# BUILT_FOR_SMOKE only.
TEST_EXTENSIONS = .sh .py
LOG_COMPILER = $(top_builddir)/run
AM_LOG_FLAGS = $(UNIT_RUNNER)
SH_LOG_COMPILER = $(top_builddir)/run
PY_LOG_COMPILER = $(top_builddir)/run
AM_PY_LOG_FLAGS = $(PYTHON_NBD)

# The tests again under valgrind: the unit tests themselves, and nbdkit
# by way of tests/bin/nbdkit.  (It would look for leaks at the end of every
# single test; with ASan the same tests have them looked for in less time.)
VALGRIND_UNIT_RUNNER = \
	$(VALGRIND) --quiet --error-exitcode=99 --leak-check=no \
	--suppressions=$(abs_top_srcdir)/tests/valgrind.supp

check-valgrind:
	@if test '$(VALGRIND)' = no; then \
	  echo 'configure did not find valgrind' >&2; exit 1; \
	fi
	QCOW2_VALGRIND=1 $(MAKE) $(AM_MAKEFLAGS) check \
	    UNIT_RUNNER='$(VALGRIND_UNIT_RUNNER)'

.PHONY: check-valgrind
