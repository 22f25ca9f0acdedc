read -r up _ < /proc/uptime
test "${up%.*}" -gt 1000000
