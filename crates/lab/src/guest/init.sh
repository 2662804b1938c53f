#!/bin/sh
# A guest's start: modules, then what the kernel's command line says about each NIC, in the order of the devices:
# tenet.nic=NAME|ADDRESS/LEN,...|GATEWAY,...
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs tmp /tmp
mkdir -p /dev/pts
mount -t devpts pts /dev/pts
while read -r module; do insmod "/lib/$module.ko"; done </lib/order
# Addresses are usable at once and routers are not asked for any: all are given.
for scope in all default; do
  for key in accept_dad accept_ra router_solicitations; do
    echo 0 >/proc/sys/net/ipv6/conf/$scope/$key
  done
done
# Who is pinged a thousand times a second answers each time.
echo 0 >/proc/sys/net/ipv4/icmp_ratelimit
echo 0 >/proc/sys/net/ipv6/icmp/ratelimit
# Questions wait while the emulator does not run us.
echo 4194304 >/proc/sys/net/core/rmem_max
echo 4194304 >/proc/sys/net/core/rmem_default
ip link set lo up
# Out of the way first, as a port may be called eth0 and not be the first device.
for path in /sys/class/net/eth*; do
  [ -e "$path" ] && ip link set "${path##*/}" name "nic${path##*/eth}"
done
at=0
for word in $(cat /proc/cmdline); do
  case $word in
    tenet.name=*) name=${word#tenet.name=} ;;
    tenet.nic=*)
      nic=${word#tenet.nic=}
      link=${nic%%|*} rest=${nic#*|}
      addresses=${rest%%|*} gateways=${rest#*|}
      ip link set "nic$at" name "$link"
      ip link set "$link" up
      for address in $(echo "$addresses" | tr , ' '); do ip addr add "$address" dev "$link"; done
      if [ "$at" = 0 ]; then
        for gateway in $(echo "$gateways" | tr , ' '); do
          case $gateway in
            *:*) ip -6 route add default via "$gateway" dev "$link" ;;
            *) ip route add default via "$gateway" dev "$link" ;;
          esac
        done
      fi
      at=$((at + 1))
      ;;
  esac
done
echo "${name:-guest}" >/etc/name
hostname "$(echo "${name:-guest}" | tr / -)"
echo "guest ${name:-guest} is up after $(cut -d' ' -f1 /proc/uptime) s"
