#!/bin/busybox sh
# First process of the machine: load the drivers of the root disk, wait for it, mount it, hand over.
bb=/bin/busybox
$bb mount -t devtmpfs -o mode=0755,nosuid dev /dev
$bb mount -t proc -o nosuid,nodev,noexec proc /proc
$bb mount -t sysfs -o nosuid,nodev,noexec sys /sys
$bb mount -t tmpfs -o mode=0755,nosuid,nodev run /run

while read -r module; do
    # A driver for hardware that is not there may refuse: that is no problem of ours.
    $bb insmod "/modules/$module" 2>/dev/null
done </modules/order

root=
init=/sbin/init
mode=ro
for word in $($bb cat /proc/cmdline); do
    case $word in
    root=*) root=${word#root=} ;;
    init=*) init=${word#init=} ;;
    rw) mode=rw ;;
    ro) mode=ro ;;
    esac
done

# Prints the block device that $root names, if it is there yet.
find_root() {
    case $root in
    /dev/*) [ -b "$root" ] && echo "$root" ;;
    LABEL=* | UUID=*) $bb findfs "$root" 2>/dev/null ;;
    esac
}

# Disks may take a while to be seen; 60 seconds is what an attached network disk needs at worst.
tries=0
device=$(find_root)
while [ -z "$device" ] && [ $tries -lt 600 ]; do
    tries=$((tries + 1))
    $bb sleep 0.1
    device=$(find_root)
done

if [ -n "$device" ] && $bb mount -t ext4 -o "$mode" "$device" /root; then
    for folder in dev proc sys run; do
        $bb mount --move "/$folder" "/root/$folder"
    done
    exec $bb switch_root /root "$init"
fi

echo "initrd: cannot mount the root disk (root=$root, found: ${device:-nothing}). Block devices:" >/dev/console
$bb ls /sys/class/block >/dev/console
echo "initrd: restarting in 60 seconds" >/dev/console
$bb sleep 60
$bb reboot -f
