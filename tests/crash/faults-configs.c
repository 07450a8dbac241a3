/* SPDX-License-Identifier: BSD-3-Clause */

/* The images, and the ways to serve them, of test-faults. */

#include <config.h>

#include <string.h>

#include "faults.h"
#include "pairs.h"

#define K 1024u
#define CREATE "qemu-img create -q -f qcow2 "
#define IO "qemu-io -f qcow2 disk.qcow2 >/dev/null "

/* The same of encrypted ones. */
#define SECRET "--object secret,id=s,data=" FAULTS_PASSPHRASE " "
#define LOCKED SECRET "--image-opts " \
  "driver=qcow2,encrypt.key-secret=s,file.filename=disk.qcow2 "
#define CREATE_AES CREATE SECRET "-o encrypt.format=aes," \
  "encrypt.key-secret=s,"
#define LOCKED_IO "qemu-io " LOCKED ">/dev/null "
#define CREATE_LUKS "rm -f disk.qcow2 disk.data && " \
  "nbdkit -U - qcow2 disk.qcow2 create.encrypt.format=luks " \
  "create.encrypt.cipher-alg=aes-128 create.encrypt.iter-time=1 " \
  "passphrase=" FAULTS_PASSPHRASE " --run true "

#define BASE CREATE "-o cluster_size=4k base.qcow2 400k && " \
  "qemu-io -f qcow2 -c 'write -P 5 10k 300k' base.qcow2 >/dev/null && "
#define BITMAP "qemu-img bitmap --add -g 512 "
#define SNAPSHOT "qemu-img snapshot -c one "
/* FEATURES: the last byte of the incompatible ones, in octal. */
#define MARK_DIRTY(features) \
  " && printf '\\" features "' | " \
  "dd of=disk.qcow2 bs=1 seek=79 conv=notrunc status=none"
#define RAW(size) "truncate -s " size " raw && " \
  "qemu-io -f raw -c 'write -P 9 0 300k' raw >/dev/null && "

const struct fault_config fault_configs[] = {
  { "64k", 1024 * K, 160 * K, 0, 0, 0, CREATE "disk.qcow2 1M" },
  { "4k", 1024 * K, 96 * K, 0, 0, 0,
    CREATE "-o cluster_size=4k disk.qcow2 1M" },
  { "512", 512 * K, 48 * K, 0, 1, 0,
    CREATE "-o cluster_size=512 disk.qcow2 512k" },
  { "blocks", 512 * K, 96 * K, 0, 1, 0,
    CREATE "-o cluster_size=512,refcount_bits=64 disk.qcow2 512k" },
  { "table", 2560 * K, 96 * K, 0, 1, 0,
    CREATE "-o cluster_size=512,refcount_bits=64 disk.qcow2 2560k && "
    IO "-c 'write -P 3 0 1840k'" },
  { "one-bit", 512 * K, 48 * K, 0, 0, 0,
    CREATE "-o cluster_size=4k,refcount_bits=1 disk.qcow2 512k" },
  { "version-2", 512 * K, 48 * K, 0, 0, 0,
    CREATE "-o compat=0.10,cluster_size=4k disk.qcow2 512k && "
    IO "-c 'write -P 3 64k 128k'" },
  { "snapshots", 512 * K, 48 * K, 0, 0, 0,
    CREATE "-o cluster_size=1k disk.qcow2 512k && "
    IO "-c 'write -P 3 0 400k' && qemu-img snapshot -c one disk.qcow2 && "
    IO "-c 'write -P 4 100k 200k' && qemu-img snapshot -c two disk.qcow2" },
  { "backing", 512 * K, 48 * K, 0, 0, 0,
    CREATE "-o cluster_size=4k base.qcow2 400k && "
    "qemu-io -f qcow2 -c 'write -P 5 10k 300k' base.qcow2 >/dev/null && "
    CREATE "-o cluster_size=4k -b base.qcow2 -F qcow2 disk.qcow2 512k && "
    IO "-c 'write -P 6 100k 50k'" },
  { "compressed", 512 * K, 48 * K, 0, 1, 0,
    "truncate -s 512k raw && "
    "qemu-io -f raw -c 'write -P 9 0 400k' raw >/dev/null && "
    "qemu-img convert -c -O qcow2 -o cluster_size=4k raw disk.qcow2" },
  { "compress", 512 * K, 48 * K, WRITE_COMPRESSED, 1, 0,
    CREATE "-o cluster_size=4k disk.qcow2 512k" },
  { "zeroes", 512 * K, 48 * K, 0, 0, 0,
    CREATE "-o cluster_size=4k disk.qcow2 512k && "
    IO "-c 'write -P 5 0 400k' -c 'write -z 100k 200k' "
    "-c 'write -zu 310k 40k'" },
  { "data-file", 512 * K, 48 * K, 0, 0, 0,
    CREATE "-o cluster_size=4k,data_file=disk.data disk.qcow2 512k && "
    IO "-c 'write -P 5 0 200k' -c 'write -z 100k 50k'" },
  { "data-raw", 512 * K, 48 * K, 0, 1, 0,
    CREATE "-o cluster_size=4k,data_file=disk.data,data_file_raw=on "
    "disk.qcow2 512k && "
    IO "-c 'write -P 5 0 400k' -c 'write -z 100k 200k'" },
  /* When a commit had failed data was written ahead of its entries. */
  { "zeroed-raw", 512 * K, 48 * K, EACH_EIO, 0, 0,
    CREATE "-o cluster_size=1k,data_file=disk.data,data_file_raw=on "
    "disk.qcow2 512k && " IO "-c 'write -P 5 0 4k' -c 'write -z 0 512k'" },
  { "tracker", 512 * K, 48 * K, 0, 0, 2048,
    CREATE "-o cluster_size=512 disk.qcow2 512k && "
    IO "-c 'write -P 5 0 200k' && qemu-img snapshot -c one disk.qcow2" },
  { "bitmaps", 512 * K, 48 * K, 0, 0, 0,
    CREATE "-o cluster_size=1k disk.qcow2 512k && "
    IO "-c 'write -P 5 0 200k' && qemu-img bitmap --add -g 512 disk.qcow2 "
    "on && qemu-img bitmap --add --disable -g 512 disk.qcow2 off && "
    "qemu-img bitmap --add -g 64k disk.qcow2 coarse" },
  { "extended", 1024 * K, 96 * K, 0, 1, 0,
    CREATE "-o cluster_size=16k,extended_l2=on disk.qcow2 1M && "
    IO "-c 'write -P 5 0 200k' -c 'write -z 100k 51k'" },
  { "extended-snapshots", 1024 * K, 96 * K, 0, 0, 0,
    CREATE "-o cluster_size=16k,extended_l2=on disk.qcow2 1M && "
    IO "-c 'write -P 5 0 400k' && qemu-img snapshot -c one disk.qcow2 && "
    IO "-c 'write -P 4 100k 200k'" },
  { "luks", 512 * K, 48 * K, ENCRYPTED, 0, 0,
    "rm -f disk.qcow2 && nbdkit -U - qcow2 disk.qcow2 create=512k "
    "create.cluster-size=4k create.encrypt.format=luks "
    "create.encrypt.cipher-alg=aes-128 create.encrypt.iter-time=1 "
    "passphrase=" FAULTS_PASSPHRASE " --run true" },
  { "aes", 512 * K, 48 * K, ENCRYPTED, 0, 0,
    CREATE "--object secret,id=s,data=" FAULTS_PASSPHRASE
    " -o encrypt.format=aes,encrypt.key-secret=s,cluster_size=1k "
    "disk.qcow2 512k" },
  { "resized", 256 * K, 48 * K, RESIZED, 0, 0,
    CREATE "-o cluster_size=512 disk.qcow2 256k && "
    IO "-c 'write -P 5 0 256k'" },
  { "resized-backing", 256 * K, 48 * K, RESIZED, 1, 0,
    CREATE "-o cluster_size=1k base.qcow2 600k && "
    "qemu-io -f qcow2 -c 'write -P 5 0 600k' base.qcow2 >/dev/null && "
    CREATE "-o cluster_size=512 -b base.qcow2 -F qcow2 disk.qcow2 256k" },
  /* A sync that failed when the bitmaps were stored was forgotten. */
  { "resized-bitmaps", 256 * K, 48 * K, RESIZED | EACH_EIO, 0, 0,
    CREATE "-o cluster_size=1k disk.qcow2 256k && "
    IO "-c 'write -P 5 0 200k' && qemu-img bitmap --add -g 512 disk.qcow2 "
    "on" },
  { "resized-raw", 256 * K, 48 * K, RESIZED, 0, 0,
    CREATE "-o cluster_size=1k,data_file=disk.data,data_file_raw=on "
    "disk.qcow2 256k && " IO "-c 'write -P 5 0 256k'" },
  { "dirty", 512 * K, 48 * K, DIRTY, 0, 0,
    CREATE "-o cluster_size=1k,lazy_refcounts=on disk.qcow2 512k && "
    "{ " IO "-c 'write -P 5 0 200k' -c flush -c 'write -P 6 100k 200k' "
    "-c 'sigraise 9' 2>&1; true; }" },
  { "2M", 8192 * K, 1024 * K, LONG_ONLY, 0, 0,
    CREATE "-o cluster_size=2M disk.qcow2 8M" },
  /* So that any two things that go together do so somewhere. */
  { "many-1", 1024 * K, 384 * K, LONG_ONLY | ENCRYPTED | DIRTY, 0, 2048,
    BASE CREATE_AES "cluster_size=128k,extended_l2=on,refcount_bits=2,"
    "data_file=disk.data -b base.qcow2 -F qcow2 disk.qcow2 1M && "
    LOCKED_IO "-c 'write -P 5 50k 200k' -c 'write -z 100k 50k' && "
    BITMAP LOCKED "on" MARK_DIRTY ("25") },
  { "many-2", 512 * K, 48 * K,
    LONG_ONLY | WRITE_COMPRESSED | RESIZED | DIRTY, 0, 2048,
    RAW ("512k") "qemu-img convert -c -O qcow2 "
    "-o cluster_size=4k,refcount_bits=64 raw disk.qcow2 && "
    SNAPSHOT "disk.qcow2 && " BITMAP "disk.qcow2 on" MARK_DIRTY ("1") },
  { "many-3", 256 * K, 48 * K, LONG_ONLY | ENCRYPTED | RESIZED | DIRTY, 1,
    2048,
    CREATE_LUKS "create=256k create.cluster-size=1k create.refcount-bits=4 "
    "&& " LOCKED_IO "-c 'write -P 5 0 200k' && " SNAPSHOT LOCKED "&& "
    BITMAP LOCKED "on" MARK_DIRTY ("1") },
  { "many-4", 1024 * K, 384 * K, LONG_ONLY | WRITE_COMPRESSED, 1, 2048,
    BASE RAW ("1M") "qemu-img convert -c -O qcow2 "
    "-o cluster_size=128k,compat=0.10 raw disk.qcow2 && "
    "qemu-img rebase -q -u -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2 && "
    SNAPSHOT "disk.qcow2" },
  { "many-5", 1024 * K, 384 * K, LONG_ONLY | ENCRYPTED | RESIZED, 0, 2048,
    CREATE_AES "cluster_size=128k,extended_l2=on,refcount_bits=64,"
    "data_file=disk.data,data_file_raw=on disk.qcow2 1M && "
    LOCKED_IO "-c 'write -P 5 0 700k' && " BITMAP LOCKED "on" },
  { "many-6", 1024 * K, 384 * K, LONG_ONLY | ENCRYPTED, 0, 0,
    BASE CREATE_LUKS "create=1M create.cluster-size=128k "
    "create.extended-l2=on create.refcount-bits=64 "
    "create.data-file=disk.data create.backing-file=base.qcow2 "
    "create.backing-fmt=qcow2 && "
    LOCKED_IO "-c 'write -P 5 50k 200k' -c 'write -z 100k 50k'" },
  { "many-7", 512 * K, 48 * K, LONG_ONLY | WRITE_COMPRESSED, 1, 0,
    RAW ("512k") "qemu-img convert -c -O qcow2 "
    "-o cluster_size=2k,refcount_bits=4 raw disk.qcow2" },
  { "many-8", 512 * K, 48 * K, LONG_ONLY | ENCRYPTED, 1, 0,
    CREATE_AES "cluster_size=2k,compat=0.10 disk.qcow2 512k && "
    LOCKED_IO "-c 'write -P 5 0 200k' && " SNAPSHOT LOCKED },
  { "many-9", 512 * K, 48 * K, LONG_ONLY | ENCRYPTED | DIRTY, 0, 0,
    CREATE_AES "cluster_size=4k,refcount_bits=1,data_file=disk.data,"
    "data_file_raw=on disk.qcow2 512k && "
    LOCKED_IO "-c 'write -P 5 0 200k'" MARK_DIRTY ("5") },
  { "many-10", 512 * K, 48 * K, LONG_ONLY | WRITE_COMPRESSED, 0, 0,
    RAW ("512k") "qemu-img convert -c -O qcow2 "
    "-o cluster_size=16k,extended_l2=on raw disk.qcow2 && "
    SNAPSHOT "disk.qcow2" },
  { "many-12", 512 * K, 48 * K, LONG_ONLY | ENCRYPTED, 0, 0,
    CREATE_LUKS "create=512k create.cluster-size=4k create.compat=0.10 && "
    LOCKED_IO "-c 'write -P 5 0 200k'" },
  { "many-11", 512 * K, 48 * K, LONG_ONLY | RESIZED, 0, 0,
    CREATE "-o cluster_size=4k,compat=0.10 disk.qcow2 512k && "
    IO "-c 'write -P 5 0 300k'" },
};
const unsigned nr_fault_configs
  = sizeof fault_configs / sizeof fault_configs[0];

/*----------------------------------------------------------------------
 * What they have.
 */

enum {
  SMALL, LARGE, V2, NARROW, WIDE, SNAPSHOTS, BACKING, PACKED, EXTENDED,
  BITMAPS, DATA, RAW_DATA, LUKS, AES, COMPRESS, RESIZE, REPAIR, TINY, LIMIT,
  NR_FEATURES,
};

/* A configuration has it that says one of these when its image is made. */
static const struct { const char *name, *says[3]; } features[NR_FEATURES] = {
  [SMALL] = { "clusters of at most 2k", { "size=512", "size=1k", "size=2k" } },
  [LARGE] = { "clusters of at least 128k", { "size=128k", "size=2M" } },
  [V2] = { "version 2", { "compat=0.10" } },
  [NARROW] = { "narrow counts", { "bits=1", "bits=2", "bits=4" } },
  [WIDE] = { "wide counts", { "bits=64" } },
  [SNAPSHOTS] = { "snapshots", { "snapshot -c" } },
  [BACKING] = { "backing file", { " -b base", "backing-file=" } },
  [PACKED] = { "compressed clusters", { "convert -c" } },
  [EXTENDED] = { "extended L2 entries", { "extended_l2=", "extended-l2=" } },
  [BITMAPS] = { "bitmaps", { "bitmap --add" } },
  [DATA] = { "data file", { "data_file=", "data-file=" } },
  [RAW_DATA] = { "raw data file", { "data_file_raw=" } },
  [LUKS] = { "LUKS", { "format=luks" } },
  [AES] = { "AES", { "format=aes" } },
  [COMPRESS] = { "written compressed", { NULL } },
  [RESIZE] = { "resized", { NULL } },
  [REPAIR] = { "dirty", { NULL } },
  [TINY] = { "tiny caches", { NULL } },
  [LIMIT] = { "a tracker with little memory", { NULL } },
};

/* What cannot go together. */
#define BIT(feature) PAIRS_BIT (feature)
static const uint64_t apart[NR_FEATURES] = {
  [SMALL] = BIT (LARGE) | BIT (EXTENDED),
  [V2] = BIT (NARROW) | BIT (WIDE) | BIT (EXTENDED) | BIT (BITMAPS)
    | BIT (DATA) | BIT (RAW_DATA) | BIT (REPAIR),
  [NARROW] = BIT (WIDE),
  [DATA] = BIT (PACKED) | BIT (COMPRESS) | BIT (SNAPSHOTS),
  [RAW_DATA] = BIT (PACKED) | BIT (COMPRESS) | BIT (SNAPSHOTS)
    | BIT (BACKING),
  [LUKS] = BIT (AES) | BIT (PACKED) | BIT (COMPRESS) | BIT (RAW_DATA),
  [AES] = BIT (PACKED) | BIT (COMPRESS),
};

static uint64_t
features_of (const struct fault_config *c)
{
  uint64_t has = 0;
  unsigned i, j;

  for (i = 0; i < NR_FEATURES; i++)
    for (j = 0; j < 3 && features[i].says[j]; j++)
      if (strstr (c->make, features[i].says[j]))
        has |= BIT (i);
  has |= c->flags & WRITE_COMPRESSED ? BIT (COMPRESS) : 0;
  has |= c->flags & RESIZED ? BIT (RESIZE) : 0;
  has |= c->flags & DIRTY ? BIT (REPAIR) : 0;
  has |= c->l2_cache ? BIT (TINY) : 0;
  has |= c->overlap_limit ? BIT (LIMIT) : 0;
  return has;
}

static const char *
name_of (unsigned feature)
{
  return features[feature].name;
}

static uint64_t
apart_from (unsigned feature)
{
  return apart[feature];
}

static uint64_t
features_of_nth (size_t n)
{
  return features_of (&fault_configs[n]);
}

bool
all_pairs_are_there (void)
{
  const struct pairs pairs = {
    .nr_features = NR_FEATURES, .name = name_of, .apart = apart_from,
    .nr_things = nr_fault_configs, .has = features_of_nth,
    .thing = "configuration",
  };

  return pairs_are_there (&pairs);
}
