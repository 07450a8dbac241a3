# SPDX-License-Identifier: BSD-3-Clause

"""What a row of the table in cases.py is made of: what may come of a damaged
image, and the row itself.
"""


class Expected:
    """WORDS: all on one line of the log, which also names the file."""

    def __init__(self, *words, reads=True, file=None, lenient=False):
        self.words = words
        self.reads = reads      # the guest's data is compared
        self.file = file        # the log names this file instead
        self.lenient = lenient  # tables are large: more memory and time

    def __str__(self):
        return "%s: %s" % (type(self).__name__, ", ".join(self.words))


class Refused(Expected):
    """At open."""


class ReadOnly(Expected):
    """Opens, but for reading only."""


class Serves(Expected):
    """Odd, but allowed: opens and can be written."""


class ReadFails(Expected):
    """Opens; EIO where the image says, and writes there fail too."""


class WriteFails(Expected):
    """Opens and can be read; a write at guest offset AT gets EIO."""

    def __init__(self, *words, at=0, **kwargs):
        super().__init__(*words, **kwargs)
        self.at = at


class TrimFails(WriteFails):
    """The same for a trim and for zeroes, which come first."""


class Case:
    def __init__(self, name, kind, damage, expected, saved=False,
                 passphrase=None):
        self.name = name
        self.kind = kind
        self.damage = damage
        self.expected = expected
        self.saved = saved      # the damage has written the file itself
        self.passphrase = passphrase    # what the server is given
