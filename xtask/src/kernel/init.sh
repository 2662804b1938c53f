#!/bin/sh
# First and only process of the guest: tells by lines that begin with @@ what it does, and how that ends.
export PATH=/bin LD_LIBRARY_PATH=/lib HOME=/root NO_COLOR=1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mount -t bpf bpf /sys/fs/bpf
while read -r module; do
	insmod "/modules/$module.ko" || echo "@@ problem module $module cannot be loaded"
done </modules/order
ip link set lo up
. /environment
echo "@@ up $(uname -r)"
echo "@@ begin check"
/target/debug/tenet agent --check
echo "@@ end check $?"
while read -r suite arguments; do
	echo "@@ begin $suite"
	# shellcheck disable=SC2086
	"/target/debug/deps/$suite" $arguments --test-threads=1 --show-output 2>&1
	echo "@@ end $suite $?"
done </suites
# What a kernel says when something in it is wrong.
dmesg | grep -E 'WARNING: |BUG: |Oops|general protection|refcount_t' | sed 's/^/@@ problem the kernel says: /'
echo "@@ done"
poweroff -f
