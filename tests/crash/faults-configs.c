/* SPDX-License-Identifier: BSD-3-Clause */

/* The images, and the ways to serve them, of test-faults. */

#include <config.h>

#include "faults.h"

#define K 1024u
#define CREATE "qemu-img create -q -f qcow2 "
#define IO "qemu-io -f qcow2 disk.qcow2 >/dev/null "

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
};
const unsigned nr_fault_configs
  = sizeof fault_configs / sizeof fault_configs[0];
