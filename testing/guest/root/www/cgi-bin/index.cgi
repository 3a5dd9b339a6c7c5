#!/bin/sh
# The page at `/`.
read -r release </proc/sys/kernel/osrelease
read -r uptime _ </proc/uptime
printf 'Content-Type: text/plain\r\n\r\nHello from a microVM.\nkernel %s\nuptime %s s\n' "$release" "$uptime"
