grep -q "^note for version: [1-9][0-9]* processes$" /proc/version || exit 1
grep -q "^note for uptime: [1-9][0-9]* processes$" /proc/uptime
