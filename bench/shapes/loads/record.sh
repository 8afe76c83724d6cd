#!/usr/bin/env bash
# Records the shapes anew, from programs of Debian's: chromium, mariadb-server, default-jdk-headless (whose java it takes),
# python3-numpy. Each is started with a load, stopped, recorded, and ended. Whoever runs it must be root, or drop --no-sandbox
# and --user.
set -eu
loads=$(cd "$(dirname "$0")" && pwd)
shapes=$(dirname "$loads")
scratch=$(mktemp -d)
started=()
finish() { kill -KILL "${started[@]}" 2>/dev/null || true; rm -rf "$scratch"; }
trap finish EXIT

# record NAME PID WORDS: the process stands still meanwhile.
record() {
    kill -STOP "$2"
    cargo quire bench memory --record "$2" --output "$scratch/$1.txt"
    kill -CONT "$2"
    sed "2s/.*/& ($3)/" "$scratch/$1.txt" > "$shapes/$1.txt"
}
version() { dpkg-query -W -f '${Package} ${Version}' "$1"; }
until_says() { for _ in $(seq 600); do grep -q "$2" "$1" && return; sleep 0.1; done; echo "$1 never says $2" >&2; exit 1; }

/usr/bin/python3 "$loads/tables.py" > "$scratch/python" & started+=($!)
until_says "$scratch/python" ready
record python3 $! "$(version python3), tables.py"

javac -d "$scratch" "$loads/Words.java"
java -cp "$scratch" Words > "$scratch/java" & started+=($!)
until_says "$scratch/java" w
record java $! "$(version default-jre-headless), Words.java"

mariadb-install-db --no-defaults --user=root --datadir="$scratch/db" --auth-root-authentication-method=normal > /dev/null 2>&1
mariadbd --no-defaults --user=root --datadir="$scratch/db" --socket="$scratch/socket" --skip-networking > "$scratch/log" 2>&1 & started+=($!)
database=$!
until_says "$scratch/log" 'ready for connections'
mariadb-slap --no-defaults --socket="$scratch/socket" --user=root --auto-generate-sql --auto-generate-sql-load-type=mixed \
    --auto-generate-sql-add-autoincrement --number-int-cols=4 --number-char-cols=4 --auto-generate-sql-write-number=400 \
    --concurrency=16 --number-of-queries=100000 > /dev/null 2>&1 & started+=($!)
sleep 10
record mariadb "$database" "$(version mariadb-server), mariadb-slap with 16 clients"

chromium --headless --no-sandbox --disable-gpu --user-data-dir="$scratch/profile" --remote-debugging-port=9333 \
    "file://$loads/page.html" > "$scratch/browser" 2>&1 & started+=($!)
browser=$!
sleep 20
# The renderer that has used most time is that of the page.
renderer=$(ps --sort=-cputimes -C chromium -o pid=,args= | grep -m 1 -e --type=renderer | awk '{ print $1 }')
record chromium-browser "$browser" "$(version chromium), headless, page.html"
record chromium-renderer "$renderer" "$(version chromium), headless, page.html"
pkill -KILL -P "$browser" || true
